"""Decoupled PPO: the clip is anchored to a recent policy, the importance weight to the one that sampled."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, log_ratio, one_side, ppo_clip


@dataclass(frozen=True)
class DecoupledPPO:
    """`loss_t = w_t * max(-A r_t, -A clamp(r_t, 1 - clip_low, 1 + clip_high))`, averaged over all tokens.

    `r_t = pi_t / prox_t` against the policy at the start of the step, `w_t = prox_t / mu_t` against the behavior policy,
    0 where it is above `cap`; such tokens stay in the denominator. `A = (R - mean(R)) / (std(R) + 1e-6)`. It needs
    `algo.old_logprobs=proximal`, and the clip does something only with several updates a step (`algo.minibatches`).

    Source: AReaL, arXiv:2505.24298. Departs from: nothing; advantages are the group's, there is no critic.
    """

    traits: ClassVar[Traits] = Traits(reads="proximal", surrogate="ratio")
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
        ratio = log_ratio(batch, scores).exp()
        weight = ((batch.old_logprobs - batch.rollout_logprobs) * batch.mask).exp()
        weight = torch.where(weight <= self.cap, weight, 0.0)
        keep = one_side(ratio, batch.advantages, self.clip_low, self.clip_high) & (weight > 0)
        per_token = weight * ppo_clip(ratio, batch.advantages, self.clip_low, self.clip_high) * batch.mask
        return LossOutput(per_token, clip_fraction(keep, batch))
