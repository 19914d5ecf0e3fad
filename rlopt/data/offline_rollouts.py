"""Recorded groups to learn from without samplers: checked once from end to end, then read again step by step.

A file is a record that a run left (`rollout_log`), compressed or not, or JSON lines of the user's own, without a first line
that says what made them:

    {"prompt": "12+7*3=", "answer": "33", "samples": [{"text": "...", "reward": 1.0}, {"text": "...", "reward": 0.0}]}

whose prompts are worded and tokenized as those of `data.train` are, and whose behavior policy is unknown. Recorded groups stand
still while the policy changes, so all of them count as sampled by version 0: their lag is the number of steps made here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlopt.core.errors import RloptError
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.data.columns import answer_of
from rlopt.data.prompts import make_prompt
from rlopt.data.rollout_log import NAME, Block, Damaged, blocks, group_from_json, refuse_foreign
from rlopt.data.tokenization import append_eos, encode
from rlopt.data.unusable import UnusableRow, need_characters, normalize_text, refuse_unusable
from rlopt.data.wording import Wording


@dataclass(frozen=True)
class Needs:
    """What a run asks of recorded groups.

    Attributes:
        max_tokens: the longest sequence, prompt and response together.
        siblings: a group of one sample has no advantages.
        logprobs: why rollout log-probabilities are needed, or None.
        held_out: prompts that are evaluated on, as `unusable.normalize_text` has them; groups of these are left out.
    """

    max_tokens: int
    siblings: bool
    logprobs: str | None
    held_out: frozenset[str] = frozenset()


@dataclass
class Experience:
    """The usable groups of a file, in its order.

    Attributes:
        path: the file.
        places: (byte where its block starts, number of the block's first line, line within the block) of every group.
        dropped: reason to line numbers of the groups that are left out.
        damage: where and why the file could not be read to its end, or None.
        has_logprobs: every group has rollout log-probabilities.
        has_texts: some group's prompt is text that was worded here.
        longest: sequence, in tokens.
        largest: group, in samples.
    """

    path: Path
    words: Wording
    places: list[tuple[int, int, int]]
    dropped: Mapping[str, list[int]]
    damage: str | None
    has_logprobs: bool
    has_texts: bool
    longest: int
    largest: int
    _block: Block | None = None

    def __len__(self) -> int:
        return len(self.places)

    def groups(self, first: int, count: int) -> list[Group]:
        """`count` groups from number `first` (from 0) on, beginning again where the file ends."""
        return [self._group(*self.places[i % len(self)]) for i in range(first, first + count)]

    def _group(self, start: int, first: int, line: int) -> Group:
        if self._block is None or self._block.start != start:
            self._block = next(blocks(self.path, start, first))
        row = json.loads(self._block.lines[line])
        return _parse(row, self.words, f"{self.path.name}:{first + line}")[0]


def load_experience(name: str, words: Wording, mine: Mapping[str, object], needs: Needs, drop: bool) -> Experience:
    """The groups of `data.experience=name`.

    Args:
        mine: the first line that a record of this run would have.
        drop: leave groups that cannot be used out, and count them.

    Raises:
        RloptError: no such file, made by another tokenizer or distribution, groups that cannot be used and are not to be
            dropped, none left, or no log-probabilities where they are needed.
    """
    path, where = Path(name), f"data.experience={name}"
    if not path.is_file():
        raise RloptError(f"{where}: no such file; give the {NAME} of a run with run.record=true, or JSON lines")
    usable, dropped, held_out, headed, damage = list[_Usable](), dict[str, list[int]](), list[int](), False, None
    try:
        for block, line, row in _rows(path):
            number = block.first + line
            if isinstance(row, dict) and row.get("rlopt") == "experience":
                refuse_foreign(row, mine, where)
                headed = True
                continue
            try:
                group, known = _checked(row, words, f"{path.name}:{number}", needs, headed)
            except UnusableRow as why:
                dropped.setdefault(str(why), []).append(number)
                continue
            if normalize_text(group.prompt.text) in needs.held_out:
                held_out.append(number)
            else:
                usable.append(_Usable.of(group, (block.start, block.first, line), known, isinstance(row["prompt"], str)))
    except Damaged as error:
        left = f"the {len(usable)} groups before it are used"
        damage = f"damaged from byte {error.offset} of {path.stat().st_size} on: {error}; {left}"
    if not drop:
        refuse_unusable(where, dropped, len(usable) + len(held_out), "groups", "line")
    found = Experience(
        path=path,
        words=words,
        places=[one.place for one in usable],
        dropped=dropped | ({"also in data.eval": held_out} if held_out else {}),
        damage=damage,
        has_logprobs=all(one.has_logprobs for one in usable),
        has_texts=any(one.is_text for one in usable),
        longest=max((one.longest for one in usable), default=0),
        largest=max((one.samples for one in usable), default=0),
    )
    _refuse(found, where, needs)
    return found


@dataclass(frozen=True)
class _Usable:
    """What is kept of a group while a file is read: its place, as in `Experience`, and its size."""

    place: tuple[int, int, int]
    longest: int
    samples: int
    has_logprobs: bool
    is_text: bool

    @classmethod
    def of(cls, group: Group, place: tuple[int, int, int], has_logprobs: bool, is_text: bool) -> "_Usable":
        longest = max(len(group.prompt.token_ids) + len(sample.token_ids) for sample in group.samples)
        return cls(place, longest, len(group.samples), has_logprobs, is_text)


def _rows(path: Path) -> Iterator[tuple[Block, int, Any]]:
    """Every line of a file that is not blank, as (its block, its place in it, what it says); raises Damaged."""
    for block in blocks(path):
        for line, text in enumerate(block.lines):
            if not text.strip():
                continue
            try:
                yield block, line, json.loads(text)
            except json.JSONDecodeError as error:
                raise Damaged(block.offset(line), f"line {block.first + line} is not JSON ({error.msg})") from None


def _refuse(found: Experience, where: str, needs: Needs) -> None:
    if not len(found):
        raise RloptError(f"{where}: no group can be used ({found.damage or '; '.join(found.dropped) or 'the file is empty'})")
    if needs.logprobs and not found.has_logprobs:
        raise RloptError(
            f"{where}: has groups without behavior log-probabilities, and {needs.logprobs}; choose an algorithm that needs "
            "none (reinforce, red_weight, asymre, ...), algo.old_logprobs=proximal where that is all it needs, or record again"
        )


def _checked(row: Any, words: Wording, name: str, needs: Needs, headed: bool) -> tuple[Group, bool]:
    """The group of a line, if this run can use it, and whether it has log-probabilities.

    `headed`: a first line names the tokenizer of the token ids.
    """
    try:
        group, known = _parse(row, words, name)
    except RloptError as refusal:
        raise UnusableRow(str(refusal)) from None
    if not group.samples:
        raise UnusableRow("no samples")
    if needs.siblings and len(group.samples) == 1:
        raise UnusableRow("one sample, and advantages are relative to the group")
    if len(group.prompt.token_ids) + max(len(sample.token_ids) for sample in group.samples) > needs.max_tokens:
        raise UnusableRow(f"more than {needs.max_tokens} tokens")
    if not headed and not isinstance(row["prompt"], str):
        raise UnusableRow("token ids, and no first line that says what made them")
    return group, known


def _parse(row: Any, words: Wording, name: str) -> tuple[Group, bool]:
    """The group of a line, with version 0, and whether it has log-probabilities."""
    try:
        if isinstance(row["prompt"], str):
            return _from_text(row, words, name), False
        known = all(sample["logprobs"] is not None for sample in row["samples"])
        samples = [
            {**sample, "versions": [0] * len(sample["token_ids"])}
            | ({} if known else {"logprobs": [0.0] * len(sample["token_ids"])})
            for sample in row["samples"]
        ]
        untold = {"refills": 0, "faults": []}  # the run that recorded them has reported these
        return group_from_json({**row, "samples": samples, **untold}), known
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnusableRow(f"no group ({type(error).__name__}: {error})") from None


def _from_text(row: Mapping[str, Any], words: Wording, name: str) -> Group:
    """A group of texts: worded and tokenized as a prompt and its answers are, each with the end token."""
    need_characters(row)
    prompt = make_prompt(name, row["prompt"], answer_of(row), "experience", words, {})
    samples = []
    for sample in row["samples"]:
        ids = append_eos(encode(words.tokenizer, sample["text"], special=False), words.tokenizer)
        samples.append(_unknown_sample(prompt, ids, sample["text"], float(sample["reward"])))
    return Group(prompt, tuple(samples))


def _unknown_sample(prompt: Prompt, ids: tuple[int, ...], text: str, reward: float) -> Sample:
    """A sample of an unknown policy."""
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.array(ids, np.int32),
        action_mask=np.ones(len(ids), bool),
        logprobs=np.zeros(len(ids), np.float32),
        versions=np.zeros(len(ids), np.int32),
        text=text,
        finish="stop",
        reward=reward,
        parts={},
    )
