"""Objectives as a user might get them wrong."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.objectives.advantages import centered
from rlopt.objectives.core import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs, Traits


@dataclass(frozen=True)
class NoLoss:
    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return inputs.returns


class Plain:
    traits = Traits()
    average = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return inputs.returns

    def loss(self, batch: object, scores: object) -> None:
        return None


@dataclass(frozen=True)
class Backwards:
    """Teaches the opposite."""

    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return -centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})
