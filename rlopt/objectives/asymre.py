"""AsymRE: REINFORCE with a baseline a little below the mean, so that good answers outweigh bad ones."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import group_mean
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class AsymRE:
    """The mean advantage is `-shift`, a pull towards what the behavior policy did; with shift 0 stale training collapses.

    `loss_t = -A * log pi_t / (1 + tau)`, `A = R - (mean(R) + shift)`, averaged over all tokens.

    Source: arXiv:2506.20520 (shift -0.1, tau 0); Trinity-RFT's default tau of 1 halves the gradient. Departs from: nothing.
    """

    traits: ClassVar[Traits] = Traits(on_policy_identity=False, equal_rewards_no_credit=False)
    average: ClassVar[Average] = "token_mean"

    shift: float
    tau: float

    def __post_init__(self) -> None:
        need(self.tau >= 0, "algo.tau", self.tau, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return inputs.returns - group_mean(inputs.returns, inputs.group) - self.shift

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages / (1 + self.tau) * scores.logprobs * batch.mask, {})
