"""M2PO: drop the fewest tokens that bring the second moment of the log-ratio under a threshold."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, masked_mean


@dataclass(frozen=True)
class M2PO:
    """`loss_t = -A * r_t` on kept tokens, 0 on dropped ones, averaged over all; `r_t = pi_t / mu_t`.

    Tokens that the advantage pushes further away (`A > 0` and `r > 1`, or `A < 0` and `r < 1`) are dropped, largest
    `(log r)^2` first, until the mean of `(log r)^2` over those left is at most `threshold`. The choice is made once for the
    whole step, with the policy at its start (so it needs `algo.old_logprobs=proximal`), not in each micro-batch.
    `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2510.01161, algorithm 1, as in Trinity-RFT. Departs from: the authors' repository, which solves for one clip
    range, and AReaL, which drops tokens whatever their sign.
    """

    traits: ClassVar[Traits] = Traits(reads="proximal", surrogate="ratio", clips_in_credit=True)
    average: ClassVar[Average] = "token_mean"

    threshold: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        need(self.threshold > 0, "algo.threshold", self.threshold, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        advantages = standardized(inputs, self.std)[:, None] * inputs.mask
        log_r = (inputs.old_logprobs - inputs.rollout_logprobs) * inputs.mask
        pushed_away = ((advantages > 0) & (log_r > 0)) | ((advantages < 0) & (log_r < 0))
        return advantages * second_moment_mask(log_r.square().double(), pushed_away, self.threshold)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = ((scores.logprobs - batch.rollout_logprobs) * batch.mask).exp()
        judged = (batch.advantages != 0).any(1, keepdim=True)
        dropped = (judged & (batch.advantages == 0)).to(ratio.dtype)
        return LossOutput(-batch.advantages * ratio * batch.mask, {"actor/pg_clipfrac": masked_mean(dropped, batch.mask)})


def second_moment_mask(squares: Tensor, judged: Tensor, threshold: float) -> Tensor:
    """`[B, T]`, False on the judged tokens to be dropped: the largest, until the mean of the others is within `threshold`."""
    ascending, order = squares[judged].sort()
    means = ascending.cumsum(0) / torch.arange(1, len(ascending) + 1)
    kept = torch.zeros_like(ascending, dtype=torch.bool)
    kept[order] = means <= threshold
    mask = torch.ones_like(judged)
    mask[judged] = kept
    return mask
