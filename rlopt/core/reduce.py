"""Metric values that merge exactly over micro-batches and ranks."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Sum:
    """A sum over micro-batches and ranks."""

    total: float

    @property
    def value(self) -> float:
        return self.total

    def merge(self, other: Self) -> "Sum":
        return Sum(self.total + other.total)


@dataclass(frozen=True)
class Mean:
    """A mean over everything counted on all ranks, whatever the split."""

    total: float
    count: float

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")

    def merge(self, other: Self) -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True)
class Max:
    """The largest value on all ranks."""

    value: float

    def merge(self, other: Self) -> "Max":
        return Max(max(self.value, other.value))


@dataclass(frozen=True)
class Ess:
    """Effective sample size as a share of the tokens: (sum r)^2 / (count * sum r^2)."""

    total: float
    squares: float
    count: float

    @property
    def value(self) -> float:
        return self.total**2 / (self.count * self.squares) if self.count else float("nan")

    def merge(self, other: Self) -> "Ess":
        return Ess(self.total + other.total, self.squares + other.squares, self.count + other.count)


Metric = Sum | Mean | Max | Ess
