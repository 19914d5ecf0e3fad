"""REINFORCE with the group's mean as baseline: what the others bound, weight or shape."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class REINFORCE:
    """No clip, no importance weight: nothing bounds how far stale samples carry the policy.

    `loss_t = -A * log pi_t`, `A = R - mean(R)`, averaged over all tokens.

    Source: Williams 1992; group baseline and token mean as in arXiv:2509.24203, section 2. Departs from: nothing.
    """

    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})
