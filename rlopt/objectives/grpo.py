"""GRPO: a clipped importance-weighted policy gradient with rewards standardized in the group."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import check_clip, log_ratio


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation, by default as arXiv:2509.24203 plots it.

    `loss_t = max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))`, `r_t = pi_t / old_t`,
    `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2402.03300 (DeepSeekMath). Departs from: the paper, which averages within a sequence first
    (`average=sequence_mean`), takes the sample's standard deviation (`std=sample`) and adds a k3 KL term of 0.04
    (`kl.coef=0.04 kl.estimator=k3`); verl and Trinity-RFT add a dual clip of 3 (`dual_clip=3.0`). TRL's epsilon beside the
    standard deviation is 1e-4.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]
    average: Average

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return clipped_surrogate(log_ratio(batch, scores).exp(), batch, self.clip_low, self.clip_high)
