"""GMPO: the geometric mean of the tokens' ratios, each clipped first."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import log_ratio, sequence_mean


@dataclass(frozen=True)
class GMPO:
    """`loss_i = -A_i exp(mean_t c_t)`, `c_t = log r_t` held on the side to which `A` pushes within `+-clip_log`, averaged over
    sequences; `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2507.20673 (clip 0.4 of the log-ratio). Departs from: a public copy that clips the log-ratio to
    [1 - e, 1 + e], a mistake.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")
    average: ClassVar[Average] = "sequence_mean"

    clip_log: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        need(self.clip_log > 0, "algo.clip_log", self.clip_log, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        log_r, positive = log_ratio(batch, scores), batch.advantages >= 0
        clipped = torch.where(positive, log_r.clamp(max=self.clip_log), log_r.clamp(min=-self.clip_log))
        keep = torch.where(positive, log_r <= self.clip_log, log_r >= -self.clip_log)
        per_token = -batch.advantages * sequence_mean(clipped, batch.mask).exp() * batch.mask
        return LossOutput(per_token, clip_fraction(keep, batch))
