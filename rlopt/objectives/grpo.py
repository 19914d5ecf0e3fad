"""GRPO: a clipped importance-weighted policy gradient with rewards standardised in the group."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.errors import RloptError
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import masked_mean
from rlopt.objectives.ratios import log_ratio, one_side
from rlopt.types import Average, Batch, LossOutput, Scores


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation, by default as arXiv:2509.24203 plots it.

    `surrogate=rec`: `loss_t = -A * sg(M_t r_t) * log pi_t`, `M = one_side(r)`, `r = pi / mu`.
    `surrogate=ppo`: `loss_t = max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))` (arXiv:2402.03300), and with
    `dual_clip = c` at most `-A c` where `A < 0` (arXiv:1912.09729). Both have the same gradient, apart from dual clip;
    only the value of the loss differs. `A = (R - mean) / (std + 1e-6)`; average over all tokens.

    Departs from: DeepSeekMath, which averages within a sequence first and adds a k3 KL term of 0.04; verl, TRL and
    Trinity-RFT's `grpo`, which take the sample standard deviation (`std=sample`) and, the first and the last, a dual
    clip of 3.
    """

    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    std: Literal["population", "sample"]
    surrogate: Literal["rec", "ppo"]
    dual_clip: float | None

    def __post_init__(self) -> None:
        if self.dual_clip is not None and (self.surrogate != "ppo" or self.dual_clip <= 1):
            raise RloptError(
                f"algo.dual_clip={self.dual_clip}: needs algo.surrogate=ppo and a bound above 1 (null turns it off)"
            )

    def advantages(self, rewards: Tensor) -> Tensor:
        return standardized(rewards, self.std)

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        ratio, advantages = log_ratio(batch, scores).exp(), batch.advantages
        keep = one_side(ratio.detach(), advantages, self.clip_low, self.clip_high)
        if self.surrogate == "rec":
            per_token = -advantages * (keep * ratio).detach() * scores.logprobs
        else:
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            per_token = torch.maximum(-advantages * ratio, -advantages * clipped)
        if self.dual_clip is not None:
            bounded = torch.minimum(per_token, -advantages * self.dual_clip)
            keep = keep * ~((advantages < 0) & (per_token > bounded))
            per_token = torch.where(advantages < 0, bounded, per_token)
        return LossOutput(per_token * batch.mask, {"actor/pg_clipfrac": masked_mean(1 - keep, batch.mask)})
