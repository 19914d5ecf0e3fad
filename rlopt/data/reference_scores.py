"""The reference's log-probabilities of recorded rows, kept in the run's folder: no row is scored twice.

A resumed run has the same numbers, which it would not have if it scored a row again, among other rows.

A file like a record (`rollout_log`): a gzip member for every batch that was scored, the first with what made them all.

    {"rlopt": "references", "format": 1, "tokenizer": "5f1c...", "model": "tiny_s", "dtype": "float32", "temperature": 1.0}
    {"row": "0d3f...", "logprobs": [[-0.11, ...], [-0.52, ...]]}
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlopt.core.samples import Example
from rlopt.data.rollout_log import Damaged, blocks, member, short

NAME = "references.jsonl.gz"
"""Of the file in a run's folder."""


def row_key(example: Example) -> str:
    """Of a row with these token ids, wherever it stands."""
    ids = [example.prompt.token_ids, *example.answers]
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=12).hexdigest()


class ReferenceScores:
    """Log-probabilities `[n]` for the tokens of each answer of a row, by `row_key`."""

    def __init__(self, run: Path, about: Mapping[str, object], origin: Path | None) -> None:
        """Read what is there; what another model gave, or another dtype, is forgotten.

        Args:
            about: the first line that the file has, or gets.
            origin: the folder of the run that this one is a fork of, whose file is taken over.
        """
        self._path, self._about = run / NAME, {"rlopt": "references", "format": 1, **about}
        self._kept: dict[str, list[np.ndarray]] = {}
        if origin and not self._path.exists() and (origin / NAME).is_file():
            shutil.copyfile(origin / NAME, self._path)
        end = self._read() if self._path.exists() else 0
        with self._path.open("ab") as file:
            file.truncate(end)
            if not end:
                file.write(member([self._about]))

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __getitem__(self, key: str) -> list[np.ndarray]:
        return self._kept[key]

    def add(self, rows: Mapping[str, list[np.ndarray]]) -> None:
        """Keep the rows of one batch, in the file as well."""
        self._kept |= rows
        lines = [{"row": key, "logprobs": [short(values) for values in answers]} for key, answers in rows.items()]
        with self._path.open("ab") as file:
            file.write(member(lines))

    def _read(self) -> int:
        """Read the file, up to where it was cut or changed; the byte after the last good block."""
        end = 0
        try:
            for block in blocks(self._path):
                rows = [json.loads(line) for line in block.lines]
                if not end and rows[0] != self._about:
                    return 0
                for row in rows if end else rows[1:]:
                    self._kept[row["row"]] = [np.array(values, np.float32) for values in row["logprobs"]]
                end = block.end
        except Damaged:
            pass  # an interruption cut the last block short; its rows are scored again
        return end
