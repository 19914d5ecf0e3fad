"""CISPO: no token is ever dropped; the importance weight is bounded instead."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, log_ratio, two_side


@dataclass(frozen=True)
class CISPO:
    """`loss_t = -A * sg(clamp(r_t, 1 - clip_low, 1 + clip_high)) * log pi_t`, averaged over all tokens.

    `A = (R - mean(R)) / (std(R) + 1e-6)`; `clip_low=1` means that there is no lower bound. `actor/pg_clipfrac` is the share
    of bounded weights.

    Source: MiniMax-M1, arXiv:2506.13585; bounds as verl, slime and Trinity-RFT write them, offsets from 1. Departs from:
    TRL and ScaleRL (arXiv:2510.13786), whose `epsilon_high` is the bound itself: their 5.0 is `clip_high=4.0`.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = log_ratio(batch, scores).detach().exp()
        weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        inside = two_side(ratio, self.clip_low, self.clip_high)
        return LossOutput(-batch.advantages * weight * scores.logprobs * batch.mask, clip_fraction(inside, batch))
