"""Groups as lines of JSON, and the record of everything that a run learned from.

A record is JSON lines: first one that says what made the groups, then one per group, in the order of learning.

    {"rlopt": "experience", "format": 1, "tokenizer": "5f1c...", "model": "tiny_s", "temperature": 1.0, "top_p": 1.0}
    {"step": 21, "prompt": {"id": "...", "text": "...", "answer": "...", "source": "...", "token_ids": [...]},
     "samples": [{"token_ids": [...], "spoken": [...], "logprobs": [...], "versions": [...], "text": "...", "finish": "stop",
                  "reward": 1.0, "parts": {}, "policy": [...]}], "refills": 0, "faults": []}

`logprobs` are those of the policy that sampled (null where the run learned from groups that had none), `policy` those of the
policy that was about to learn, both in nats per token. `spoken` is 0 on tokens of an environment; its samples also have `turns`
(start, end and reward of each) and `episode` (their numbers). A run writes `experience.jsonl.gz`, a gzip member per learner
step: it can be read while it grows (`zcat`), a step that an interruption cut short is detected by its checksum, and damage
affects nothing before it.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from rlopt.core.appended import AppendedFile
from rlopt.core.errors import Fault, RloptError
from rlopt.core.samples import Group, Prompt, Sample, Turn

NAME = "experience.jsonl.gz"
"""Of the record in a run's folder."""

LARGEST = 2**30
"""Bytes of a block: one step of a run. A small file can unpack to any size."""

PIECE = 2**20
"""Bytes of a file that are read at a time, and about the bytes of a block of a file that is not compressed."""


@dataclass(frozen=True)
class Block:
    """Some lines of a record that are read together: a gzip member, or a stretch of a plain file.

    `start` and `end` are byte offsets in the file as it lies there; `first` is the number (from 1) of its first line.
    """

    start: int
    end: int
    first: int
    lines: list[str]
    compressed: bool

    def offset(self, line: int) -> int:
        """The byte in the file where the line `line` of this block (from 0) can be read from: of a member, its start."""
        return self.start if self.compressed else self.start + sum(len(text.encode()) + 1 for text in self.lines[:line])


class Damaged(Exception):
    """A record cannot be read on from the byte `offset`."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


def blocks(path: Path, start: int = 0, first: int = 1) -> Iterator[Block]:
    """The blocks of a record from the byte `start` on, where line number `first` begins.

    Raises:
        Damaged: where the file was cut or changed; what was yielded before is good.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(start)
        for begin, end, data in _members(file, start) if compressed else _stretches(file, start):
            try:
                lines = data.decode().split("\n")[:-1]  # not splitlines, which cuts inside a text at U+2028
            except UnicodeDecodeError as error:
                good = 0 if compressed else data.rfind(b"\n", 0, error.start) + 1
                if good:
                    yield Block(begin, begin + good, first, data[:good].decode().split("\n")[:-1], compressed)
                raise Damaged(begin + good, f"no UTF-8 ({error.reason})") from None
            yield Block(begin, end, first, lines, compressed)
            first += len(lines)


def _members(file: IO[bytes], start: int) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, content) of every gzip member."""
    rest = file.read(PIECE)
    while rest:
        member, content, end = zlib.decompressobj(wbits=31), bytearray(), start
        while not member.eof:
            if not rest:
                raise Damaged(start, "the file ends in the middle of a block")
            try:
                content += member.decompress(rest, LARGEST - len(content) + 1)
            except zlib.error as error:
                raise Damaged(start, f"not what was written ({error})") from None
            if len(content) > LARGEST:
                raise Damaged(start, f"a block unpacks to over {LARGEST / 2**30:.0f} GiB")
            end += len(rest) - len(member.unused_data)
            rest = member.unused_data if member.eof else file.read(PIECE)
        yield start, end, _whole(bytes(content))
        rest, start = rest or file.read(PIECE), end


def _stretches(file: IO[bytes], start: int) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, content) of whole lines of a plain file."""
    while lines := file.readlines(PIECE):
        content = b"".join(lines)
        yield start, start + len(content), _whole(content)
        start += len(content)


def _whole(content: bytes) -> bytes:
    """A last line without a line break counts."""
    return content if not content or content.endswith(b"\n") else content + b"\n"


class Recorder:
    """Writes the record of a run. A resumed run's record forgets the steps that are made again."""

    def __init__(self, run: Path, step: int, about: Mapping[str, object], logprobs_known: bool, waits: bool = False) -> None:
        """`step`: the run continues after it; `about`: what `header` makes; `logprobs_known`: groups have them; `waits`: for
        room, where the disk is full."""
        self._logprobs_known = logprobs_known
        path = run / NAME
        if path.exists():
            end = _end_of(path, step)
            with path.open("r+b") as file:
                file.truncate(end)
        self._file = AppendedFile(path, waits)
        if not path.stat().st_size:
            self._write([about])

    def step(self, step: int, groups: list[Group], policy: Tensor) -> None:
        """Write the groups of a learner step; `policy` `[B, T]` are the learner's log-probabilities of all their samples."""
        rows, values = [], iter(policy.numpy())
        for group in groups:
            row, start = {"step": step, **group_to_json(group)}, len(group.prompt.token_ids)
            for sample in row["samples"]:
                sample["policy"] = short(next(values)[start : start + len(sample["token_ids"])])
                if not self._logprobs_known:
                    sample["logprobs"] = None
            rows.append(row)
        self._write(rows)

    def _write(self, rows: list[Any]) -> None:
        self._file.write(member(rows))


def member(rows: Iterable[Mapping[str, object]]) -> bytes:
    """Lines of JSON as one gzip member, whose bytes depend on them alone."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    return gzip.compress(text.encode(), compresslevel=5, mtime=0)


def _end_of(path: Path, step: int) -> int:
    """The byte after the last good block whose groups were learned from by `step`."""
    end = 0
    try:
        for block in blocks(path):
            if block.start and json.loads(block.lines[0])["step"] > step:
                break
            end = block.end
    except Damaged:
        pass  # an interruption cut the last block short; that step is made again
    return end


def header(tokenizer: str, model: str, temperature: float, top_p: float) -> dict[str, object]:
    """The first line of a record. `tokenizer` is `data.tokenization.fingerprint`."""
    return {
        "rlopt": "experience",
        "format": 1,
        "tokenizer": tokenizer,
        "model": model,
        "temperature": temperature,
        "top_p": top_p,
    }


def group_to_json(group: Group) -> dict[str, Any]:
    samples = [
        {
            "token_ids": s.token_ids.tolist(),
            "spoken": s.action_mask.astype(int).tolist(),
            "logprobs": short(s.logprobs),
            "versions": s.versions.tolist(),
            "text": s.text,
            "finish": s.finish,
            "reward": s.reward,
            "parts": dict(s.parts),
        }
        | ({"turns": [[turn.start, turn.end, turn.reward] for turn in s.turns], "episode": dict(s.episode)} if s.turns else {})
        for s in group.samples
    ]
    prompt = group.prompt
    about = {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "source": prompt.source}
    return {"prompt": about | {"token_ids": list(prompt.token_ids)}, "samples": samples} | {
        "refills": group.refills,
        "faults": [vars(fault) for fault in group.faults],
    }


def group_from_json(row: Mapping[str, Any]) -> Group:
    """The group that `group_to_json` was given."""
    prompt = Prompt(**{**row["prompt"], "token_ids": tuple(row["prompt"]["token_ids"])})
    samples = [
        Sample(
            prompt_id=prompt.id,
            token_ids=np.array(sample["token_ids"], np.int32),
            action_mask=np.array(sample["spoken"], bool),
            logprobs=np.array(sample["logprobs"], np.float32),
            versions=np.array(sample["versions"], np.int32),
            text=sample["text"],
            finish=sample["finish"],
            reward=sample["reward"],
            parts=sample["parts"],
            turns=tuple(Turn(*turn) for turn in sample.get("turns", ())),
            episode=sample.get("episode", {}),
        )
        for sample in row["samples"]
    ]
    return Group(prompt, tuple(samples), row["refills"], tuple(Fault(**fault) for fault in row.get("faults", [])))


def short(values: np.ndarray) -> list[float]:
    """float32 values as the shortest decimals that give the same float32 back."""
    return [float(str(value)) for value in values.astype(np.float32)]


def refuse_foreign(about: Mapping[str, Any], mine: Mapping[str, object], where: str) -> None:
    """Refuse a record whose token ids or log-probabilities mean something else here.

    Args:
        about: the record's first line.
        mine: what this run would write.
        where: the setting and its value, for the error.
    """
    if about.get("format") != 1:
        raise RloptError(f"{where}: is a record of format {about.get('format')}, this version of rlopt reads format 1")
    if about["tokenizer"] != mine["tokenizer"]:
        raise RloptError(
            f"{where}: was recorded with another tokenizer (model.path={about['model']}), so its token ids mean something "
            f"else to model.path={mine['model']}; use that model, or record again"
        )
    for key in ("temperature", "top_p"):
        if about[key] != mine[key]:
            raise RloptError(
                f"{where}: was sampled at {key} {about[key]}, and its log-probabilities are those of that distribution; "
                f"set rollout.{key}={about[key]}"
            )
