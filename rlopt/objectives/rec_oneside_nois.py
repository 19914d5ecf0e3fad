"""REC-OneSide-NoIS: REINFORCE with a group baseline and a one-side clip, without importance sampling."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.objectives.advantages import centered
from rlopt.objectives.core import masked_mean
from rlopt.objectives.ratios import log_ratio, one_side
from rlopt.types import Average, Batch, LossOutput, Scores


@dataclass(frozen=True)
class RecOneSideNoIS:
    """Clipping alone keeps stale samples harmless; the importance weight is left out.

    `loss_t = -A * M_t * log pi_t`, `A = R - mean(R)`, `M_t = one_side(pi_t / mu_t)`, averaged over all tokens, masked
    ones included.

    Source: arXiv:2509.24203, "REC-OneSide-NoIS". Departs from: nothing; the published figure uses 0.2 and 0.2, and the
    paper recommends (0.6, 2.0).
    """

    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float

    def advantages(self, rewards: Tensor) -> Tensor:
        return centered(rewards)

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        with torch.no_grad():
            keep = one_side(log_ratio(batch, scores).exp(), batch.advantages, self.clip_low, self.clip_high)
        per_token = -batch.advantages * keep * scores.logprobs * batch.mask
        return LossOutput(per_token, {"actor/pg_clipfrac": masked_mean(1 - keep, batch.mask)})
