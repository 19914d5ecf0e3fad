"""BAPO: clip bounds widened at every step until good answers carry their share of the gradient."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, masked_mean


@dataclass(frozen=True)
class BAPO:
    """`loss_t = -A * r_t` within bounds that are found for the whole step, 0 beyond, averaged over all; `r_t = pi_t / mu_t`.

    `A = (R - mean(R)) / (std(R) + 1e-6)`. The bounds start at `[low, high]`; first the lower rises to `low_limit` by `step`,
    then the upper to `high_limit`, until the clipped weighted advantages have `positive / negative >= target`. They are found
    with the policy at the start of the step (`algo.old_logprobs=proximal`). Where `A < 0` a ratio above `cap` is dead too.

    Source: arXiv:2510.18927. Departs from: the value of the loss, which leaves out the constants of clipped tokens. Raising the
    lower bound, as the authors' code does first, only enlarges the negative share, so it never helps; kept as it is.
    """

    traits: ClassVar[Traits] = Traits(reads="proximal", surrogate="ratio", clips_in_credit=True)
    average: ClassVar[Average] = "token_mean"

    low: float
    high: float
    low_limit: float
    high_limit: float
    step: float
    target: float
    cap: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        need(self.step > 0, "algo.step", self.step, "must be above 0")
        need(self.cap > 0, "algo.cap", self.cap, "must be above 0")
        need(0 <= self.low <= self.low_limit <= 1, "algo.low", self.low, "want 0 <= algo.low <= algo.low_limit <= 1")
        need(1 <= self.high <= self.high_limit, "algo.high", self.high, "want 1 <= algo.high <= algo.high_limit")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        advantages = standardized(inputs, self.std)[:, None] * inputs.mask
        ratio = ((inputs.old_logprobs - inputs.rollout_logprobs) * inputs.mask).exp().double()
        low, high = self.bounds(ratio, advantages)
        dead = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & ((ratio < low) | (ratio > self.cap)))
        return advantages * ~dead

    def bounds(self, ratio: Tensor, advantages: Tensor) -> tuple[float, float]:
        """The lower and upper bound of the ratio for a step."""
        low, high = self.low, self.high
        while _share(ratio, advantages, low, high) < self.target and low + self.step <= self.low_limit + 1e-9:
            low += self.step
        while _share(ratio, advantages, low, high) < self.target and high + self.step <= self.high_limit + 1e-9:
            high += self.step
        return low, high

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = ((scores.logprobs - batch.rollout_logprobs) * batch.mask).exp()
        judged = (batch.advantages != 0).any(1, keepdim=True)
        dead = (judged & (batch.advantages == 0)).to(ratio.dtype)
        return LossOutput(-batch.advantages * ratio * batch.mask, {"actor/pg_clipfrac": masked_mean(dead, batch.mask)})


def _share(ratio: Tensor, advantages: Tensor, low: float, high: float) -> float:
    """Positive over negative part of the clipped, ratio-weighted advantages."""
    weighted = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    negative = -weighted.clamp(max=0).sum().item()
    return weighted.clamp(min=0).sum().item() / negative if negative else float("inf")
