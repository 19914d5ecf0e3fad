"""A-3PO: decoupled PPO without the forward pass for its anchor, which is interpolated."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, one_side, ppo_clip


@dataclass(frozen=True)
class A3PO:
    """`loss_t = w_t * max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))`, averaged over all tokens.

    `r_t = pi_t / prox_t`, `w_t = prox_t / mu_t` with `log prox = log mu + alpha (log pi - log mu)`, held constant, and
    `alpha = lag / (lag + 1)`: how far the version at the start of the step is from the sampler's, on the way to the one being
    made. `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2512.06547. Departs from: nothing known.
    """

    traits: ClassVar[Traits] = Traits(reads="behavior", surrogate="ratio")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        alpha = (batch.lag / (batch.lag + 1.0)).to(batch.mask.dtype)[:, None]
        moved = alpha * (scores.logprobs.detach() - batch.rollout_logprobs) * batch.mask
        ratio = ((scores.logprobs - batch.rollout_logprobs) * batch.mask - moved).exp()
        keep = one_side(ratio, batch.advantages, self.clip_low, self.clip_high)
        per_token = moved.exp() * ppo_clip(ratio, batch.advantages, self.clip_low, self.clip_high) * batch.mask
        return LossOutput(per_token, clip_fraction(keep, batch))
