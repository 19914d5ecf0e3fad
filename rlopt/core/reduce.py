"""Metric values that merge exactly over micro-batches and ranks.

While a loss is computed they may be tensors of one number: to read each where it is made would have the host wait for the
device. `fetched` reads all of them at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class Sum:
    """A sum over micro-batches and ranks."""

    total: Number

    @property
    def value(self) -> float:
        return float(self.total)

    def merge(self, other: Self) -> "Sum":
        return Sum(self.total + other.total)


@dataclass(frozen=True)
class Mean:
    """A mean over everything counted on all ranks, whatever the split."""

    total: Number
    count: Number

    @property
    def value(self) -> float:
        return float(self.total) / float(self.count) if self.count else float("nan")

    def merge(self, other: Self) -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True)
class Max:
    """The largest value on all ranks."""

    largest: Number

    @property
    def value(self) -> float:
        return float(self.largest)

    def merge(self, other: Self) -> "Max":
        return Max(max(self.largest, other.largest))


@dataclass(frozen=True)
class Ess:
    """Effective sample size as a share of the tokens: (sum r)^2 / (count * sum r^2)."""

    total: Number
    squares: Number
    count: Number

    @property
    def value(self) -> float:
        return float(self.total) ** 2 / (float(self.count) * float(self.squares)) if self.count else float("nan")

    def merge(self, other: Self) -> "Ess":
        return Ess(self.total + other.total, self.squares + other.squares, self.count + other.count)


Metric = Sum | Mean | Max | Ess


def fetched(parts: Sequence[Mapping[str, Metric]]) -> list[dict[str, Metric]]:
    """The same with plain numbers in place of tensors; the host waits for the device once."""
    waiting: list[Tensor] = [value for part in parts for metric in part.values() for value in _tensors(metric).values()]
    numbers = iter(torch.stack([tensor.double() for tensor in waiting]).tolist() if waiting else [])
    return [
        {name: _with_numbers(metric, {key: next(numbers) for key in _tensors(metric)}) for name, metric in part.items()}
        for part in parts
    ]


def _tensors(metric: Metric) -> dict[str, Tensor]:
    named = {field.name: getattr(metric, field.name) for field in fields(metric)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _with_numbers(metric: Metric, numbers: dict[str, Any]) -> Metric:
    return replace(metric, **numbers)
