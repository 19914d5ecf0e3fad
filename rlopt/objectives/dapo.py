"""DAPO: GRPO with a higher upper clip and a mean over tokens; its data rules are keys that every algorithm has."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import check_clip, log_ratio


@dataclass(frozen=True)
class DAPO:
    """Decoupled clip and dynamic sampling policy optimisation.

    `loss_t = max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))`, `A = (R - mean(R)) / (std(R) + 1e-6)`, averaged over
    all tokens. The rest of DAPO is in its YAML: `refills` (dynamic sampling: a prompt whose samples all have one reward is
    replaced until the batch is full), `overlong.buffer` (soft overlong punishment), `overlong.filter` (overlong filtering).

    Source: arXiv:2503.14476. Departs from: nothing in the loss; batch and mini-batch sizes are the run's.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return clipped_surrogate(log_ratio(batch, scores).exp(), batch, self.clip_low, self.clip_high)
