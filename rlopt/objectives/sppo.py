"""sPPO: the log-ratio as surrogate, within a two-side clip."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import log_ratio


@dataclass(frozen=True)
class SPPO:
    """`loss_t = -A * M_t * log r_t`, `M_t = 1 / (1 + clip) <= r_t <= 1 + clip`, `A = R - mean(R)`, averaged over all tokens.

    Source: Trinity-RFT's `sppo`. Departs from: nothing.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip: float

    def __post_init__(self) -> None:
        need(self.clip >= 0, "algo.clip", self.clip, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        log_r = log_ratio(batch, scores)
        ratio = log_r.detach().exp()
        keep = (ratio >= 1 / (1 + self.clip)) & (ratio <= 1 + self.clip)
        return LossOutput(-batch.advantages * keep * log_r * batch.mask, clip_fraction(keep, batch))
