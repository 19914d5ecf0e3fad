"""What a run left that the doctor goes by: metrics, and the tokens of its record with the gap of learner and sampler."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from rlopt.record import Damaged, blocks

MOST_TOKENS = 2_000_000
"""Tokens of a record that are looked at; of longer ones every n-th step."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Every token of a record that the policy spoke, all `[n]`.

    `lag` in learner updates, by the version that spoke it; `pure` where one version spoke the whole sample (in the others a
    token may have read what older weights had made of those before it); `position` counts from the first response token,
    `since` from the first of the stretch that the policy spoke without interruption.
    """

    step: np.ndarray
    lag: np.ndarray
    pure: np.ndarray
    position: np.ndarray
    since: np.ndarray
    behavior: np.ndarray
    gap: np.ndarray

    def where(self, rows: np.ndarray) -> "Tokens":
        return Tokens(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A run's metrics, step by step, and the tokens of its record, if it has one that ever saw log-probabilities.

    `recorded`: some groups were recorded by another run. At step 1 they count as lag 0, whatever policy spoke them.
    """

    rows: list[Mapping[str, float]]
    tokens: Tokens | None
    recorded: bool = False

    @property
    def comparable_from(self) -> int:
        """The first step whose samples of lag 0 were spoken by the very weights that learned from them."""
        return 2 if self.recorded else 1

    def column(self, name: str, last: float = 1.0) -> np.ndarray:
        """A metric over the `last` share of the steps, without steps that do not have it."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return np.array(values[int(len(values) * (1 - last)) :], float)


def read(run: Path) -> Evidence:
    """What the folder of a run has."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = next(iter(run.glob("experience.jsonl*")), None)
    config = run / "config.yaml"
    data = yaml.safe_load(config.read_text()).get("data", {}) if config.exists() else {}
    return Evidence(rows, read_tokens(record) if record else None, bool(data.get("experience")))


def read_tokens(record: Path) -> Tokens | None:
    """The tokens of a record, up to its damage; None where nothing is known of the policy that sampled."""
    columns: list[list[np.ndarray]] = [[] for _ in fields(Tokens)]
    stride = max(1, record.stat().st_size // MOST_TOKENS // 4)  # about four bytes a token
    try:
        for number, block in enumerate(blocks(record)):
            if number % stride:
                continue
            for line in block.lines:
                row = json.loads(line)
                for sample in row.get("samples", []):
                    if sample["logprobs"] is not None:
                        _add(columns, row["step"], sample)
    except Damaged:
        pass  # what stands before it says enough
    return Tokens(*map(np.concatenate, columns)) if columns[0] else None


def _add(columns: list[list[np.ndarray]], step: int, sample: Mapping[str, list[float]]) -> None:
    spoken = np.array(sample["spoken"], bool)
    behavior, policy = np.array(sample["logprobs"]), np.array(sample["policy"])
    place = np.arange(len(spoken))
    fresh = spoken & ~np.concatenate([[False], spoken[:-1]])
    since = place - np.maximum.accumulate(np.where(fresh, place, 0))
    lag = step - 1 - np.array(sample["versions"])
    about = np.full(len(spoken), step), lag, np.full(len(spoken), lag.min() == lag.max())
    for column, values in zip(columns, (*about, place, since, behavior, policy - behavior), strict=True):
        column.append(values[spoken])


def bins(tokens: Tokens, by: Literal["lag", "position"], count: int = 8) -> list[tuple[str, int, float, float]]:
    """(range, tokens, mean gap, mean |gap|) of tokens by lag or position, in at most `count` ranges of equal width."""
    values: np.ndarray = getattr(tokens, by)
    width = max(1, -(-(int(values.max()) + 1) // count))
    found = []
    for start in range(0, int(values.max()) + 1, width):
        gap = tokens.gap[(values >= start) & (values < start + width)]
        if len(gap):
            label = str(start) if width == 1 else f"{start} to {start + width - 1}"
            found.append((label, len(gap), float(gap.mean()), float(np.abs(gap).mean())))
    return found
