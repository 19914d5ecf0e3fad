"""Objectives as a user might get them wrong."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import Average, Batch, LossOutput, Outcomes, Scores
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class NoLoss:
    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return outcomes.returns


class Plain:
    traits = Traits()
    average = "token_mean"

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return outcomes.returns

    def loss(self, batch: object, scores: object) -> None:
        return None


@dataclass(frozen=True)
class Backwards:
    """Teaches the opposite."""

    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return -centered(outcomes)

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})
