"""Metric values that merge exactly over micro-batches and ranks.

While a loss is computed they may be tensors of one number: to read each where it is made would have the host wait for the
device. `fetched` reads all of them at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

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


def number(values: Tensor) -> Tensor:
    """The sum, of one element and float64, as sums of float32 are merged."""
    return values.detach().sum().double()


def masked_mean(values: Tensor, mask: Tensor) -> Mean:
    """The mean of `values` over entries where `mask` is 1, as a metric."""
    return Mean(number(values * mask), number(mask))


def fetched(parts: Sequence[Mapping[str, Metric]]) -> list[dict[str, Metric]]:
    """The same with plain numbers in place of tensors; the host waits for the device once."""
    tensors = [[_tensors(metric) for metric in part.values()] for part in parts]
    waiting = [tensor.double() for row in tensors for named in row for tensor in named.values()]
    numbers = iter(torch.stack(waiting).tolist() if waiting else [])
    return [
        {
            name: replace(metric, **{key: next(numbers) for key in named})
            for (name, metric), named in zip(part.items(), row, strict=True)
        }
        for part, row in zip(parts, tensors, strict=True)
    ]


def _tensors(metric: Metric) -> dict[str, Tensor]:
    named = {field.name: getattr(metric, field.name) for field in fields(metric)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}
