"""ASPO: for good answers the importance ratio is turned over, so that unlikely tokens learn most."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, log_ratio, one_side


@dataclass(frozen=True)
class ASPO:
    """`loss_t = max(-A u_t, -A bound)` with `u_t = 1 / r_t` where `A > 0` and `u_t = r_t` where `A < 0`, clipped as PPO is.

    `u` is held constant but for a gradient of `u * d log pi`. Where it is above `cap` the loss is `-A * cap * log pi_t`: a soft
    dual clip. Averaged over all tokens; `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2510.06062 (Archer 2.0). Departs from: the paper, which clips the fifth of the tokens with the highest entropy
    at 0.4 and the others at 0.2, and adds KL with weight 0.001; this has one clip for all, and no KL of its own.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    cap: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        need(self.cap > 0, "algo.cap", self.cap, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        log_r, advantages = log_ratio(batch, scores).detach(), batch.advantages
        turned = torch.where(advantages > 0, -log_r, log_r).exp()
        bound = torch.where(advantages > 0, 1 / (1 + self.clip_high), 1 - self.clip_low)
        alive = turned.clamp(max=self.cap) * torch.exp(scores.logprobs - scores.logprobs.detach())
        per_token = torch.where(turned > self.cap, self.cap * scores.logprobs, alive)
        keep = one_side(log_r.exp(), advantages, self.clip_low, self.clip_high)
        per_token = torch.where(keep, per_token, bound)
        return LossOutput(-advantages * per_token * batch.mask, clip_fraction(keep, batch))
