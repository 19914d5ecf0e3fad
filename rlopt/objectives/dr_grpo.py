"""Dr. GRPO: GRPO without the two divisions that bias it, by the group's spread and by the answer's length."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import check_clip, log_ratio


@dataclass(frozen=True)
class DrGRPO:
    """`loss_t = max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))`, `A = R - mean(R)`, divided by a constant length.

    `average=constant`: the sum over a sequence divided by `rollout.max_new_tokens`, averaged over sequences.

    Source: arXiv:2503.20783; TRL's `dr_grpo`. Departs from: verl and Trinity-RFT, which do not divide by the number of
    sequences (`average=constant_sum`).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")

    clip_low: float
    clip_high: float
    average: Average

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return clipped_surrogate(log_ratio(batch, scores).exp(), batch, self.clip_low, self.clip_high)
