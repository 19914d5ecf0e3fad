"""GSPO: GRPO with one ratio for the whole sequence, the geometric mean of its tokens'."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import check_clip, sequence_ratio


@dataclass(frozen=True)
class GSPO:
    """`loss_i = max(-A_i s_i, -A_i clamp(s_i, 1 - clip_low, 1 + clip_high))`, `s_i = exp(mean_t log r_t)`, averaged over
    sequences; `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2507.18071. Departs from: nothing; the paper makes four updates on each batch (`minibatches=4`).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")
    average: ClassVar[Average] = "sequence_mean"

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return clipped_surrogate(sequence_ratio(batch, scores), batch, self.clip_low, self.clip_high)
