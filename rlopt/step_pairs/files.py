"""The files of `rlopt.pairs`: the rows, and the chunks that are done so far."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlopt.config.compose import normalized
from rlopt.core.atomic_write import prepare_output, write_whole, writing
from rlopt.core.errors import RloptError
from rlopt.step_pairs.mining import Chunk, Row, What


@dataclass
class PairWriter:
    """The rows of the files: no row twice, `count` in all, and each prompt only on one side."""

    count: int
    eval_share: float
    train: list[Row] = field(default_factory=list)
    eval: list[Row] = field(default_factory=list)
    counts: Counter[What] = field(default_factory=Counter)
    _seen: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, chunk: Chunk) -> None:
        self.counts.update(chunk.counts)
        for row in chunk.rows:
            self.counts[self._fate(row)] += 1

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.eval)

    @property
    def full(self) -> bool:
        return self.rows >= self.count

    def _fate(self, row: Row) -> What:
        key = (row["prompt"], row["initial_reason_steps"], row["chosen"], row["rejected"])
        if key in self._seen:
            return "duplicate"
        if self.full:
            return "surplus"
        self._seen.add(key)
        if on_eval_side(row["prompt"], self.eval_share):
            self.eval.append(row)
            return "rows_eval"
        self.train.append(row)
        return "rows_train"


def on_eval_side(prompt: str, share: float) -> bool:
    """Whether the rows of `prompt` are for evaluation: a hash of its text decides, so that no seed can move it."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest()) < share * 2**64


class ChunkStore:
    """The folder of finished chunks beside `out`."""

    def __init__(self, out: Path) -> None:
        """Raises RloptError when the rows are finished."""
        self._folder = out.with_name(f"{out.name}.partial")
        self._files = (out, out.with_name(f"{out.stem}.eval.jsonl"), out.with_name(f"{out.name}.counts.json"))
        there = [path for path in self._files if path.exists()]
        if there and not self._folder.exists():
            raise RloptError(f"pairs.out={out}: {there[0]} is finished already; choose another pairs.out, or remove it")

    def claim(self, identity: dict[str, Any]) -> None:
        """Begin the folder of finished chunks, or continue it.

        Raises:
            RloptError: it was made with another config, or cannot be written.
        """
        config = self._folder / "config.json"
        theirs = normalized(json.loads(config.read_text())) if config.exists() else identity
        differs = [f"{key}={identity[key]} (there: {theirs.get(key)})" for key in identity if identity[key] != theirs.get(key)]
        if differs:
            raise RloptError(
                f"pairs.out={self._files[0]}: {self._folder} holds rows of another config, {'; '.join(differs[:3])}; "
                "choose another pairs.out, or its values, or remove that folder"
            )
        prepare_output("pairs.out", self._files[0])
        with writing("pairs.out", self._files[0]):
            self._folder.mkdir(exist_ok=True)
            write_whole(config, json.dumps(identity, indent=2))

    def chunks(self) -> Iterable[Chunk]:
        """Those that are done, from the first on."""
        number = 1
        while (path := self._chunk(number)).exists():
            chunk = json.loads(path.read_text())
            yield Chunk(chunk["rows"], Counter(chunk["counts"]))
            number += 1

    def add(self, number: int, chunk: Chunk) -> None:
        with writing("pairs.out", self._files[0], "; the same command continues after the chunks before"):
            write_whole(self._chunk(number), json.dumps(vars(chunk)))

    def finish(self, train: list[Row], evaluation: list[Row], counts: dict[Any, int]) -> tuple[Path, Path, Path]:
        """Write the files of the rows and counts, `out` last: it is the commit."""
        out, eval_file, counts_file = self._files
        with writing("pairs.out", out, "; the same command continues from there"):
            write_whole(counts_file, json.dumps(counts, indent=2) + "\n")
            for path, rows in ((eval_file, evaluation), (out, train)):
                write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        gone = self._folder.with_name(f".{self._folder.name}.done")
        shutil.rmtree(gone, ignore_errors=True)
        self._folder.rename(gone)  # at once: half a folder would look like one to continue
        shutil.rmtree(gone)
        return self._files

    def _chunk(self, number: int) -> Path:
        return self._folder / f"chunk_{number:06}.json"
