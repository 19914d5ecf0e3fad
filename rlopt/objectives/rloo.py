"""RLOO: REINFORCE with the mean of the other samples as baseline."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import leave_one_out
from rlopt.objectives.core import Traits, clip_fraction, clipped_surrogate
from rlopt.objectives.ratios import check_clip, log_ratio


@dataclass(frozen=True)
class RLOO:
    """`loss_i = -A_i * sum_t log pi_t`, `A_i = R_i - mean of the siblings' R`, averaged over sequences.

    With `clip_low` and `clip_high` (null: none) the surrogate is PPO's, as frameworks train it.

    Source: arXiv:2402.14740. Departs from: nothing; the paper takes KL from the reward (`kl.place=reward kl.estimator=k1`).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")

    clip_low: float | None
    clip_high: float | None
    average: Average

    def __post_init__(self) -> None:
        both = (self.clip_low is None) == (self.clip_high is None)
        need(both, "algo.clip_low", self.clip_low, "set both algo.clip_low and algo.clip_high, or neither")
        check_clip(self.clip_low or 0.0, self.clip_high or 0.0)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return leave_one_out(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        if self.clip_low is None or self.clip_high is None:
            per_token = -batch.advantages * scores.logprobs * batch.mask
            return LossOutput(per_token, clip_fraction(torch.ones_like(batch.mask), batch))
        return clipped_surrogate(log_ratio(batch, scores).exp(), batch, self.clip_low, self.clip_high)
