"""PMD-mean: policy mirror descent as a regression of the sequence's log-ratio on its advantage."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits
from rlopt.objectives.ratios import log_ratio, sequence_sum


@dataclass(frozen=True)
class PMD:
    """The policy is fitted to `old * exp(A / tau)`.

    `loss_i = tau / 2 * (A_i / tau - sum_t log r_t)^2 / length_i`, `A = R - mean(R)`, averaged over sequences.

    Source: arXiv:2602.05933 (OpenKimi), "PMD-mean". Departs from: nothing known.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", equal_rewards_no_credit=True)
    average: ClassVar[Average] = "sequence_mean"

    tau: float

    def __post_init__(self) -> None:
        need(self.tau > 0, "algo.tau", self.tau, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        missing = batch.advantages / self.tau - sequence_sum(log_ratio(batch, scores), batch.mask)
        length = batch.mask.sum(1, keepdim=True).clamp(min=1)
        return LossOutput(self.tau / 2 * missing.square() / length * batch.mask, {})
