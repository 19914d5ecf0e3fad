"""Corrections that compose with any objective: they bound, weight or mask its per-token loss. All weights are constants."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlopt.core.batches import Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import RloptError
from rlopt.core.reduce import masked_mean
from rlopt.objectives.ratios import log_ratio, sequence_mean, sequence_sum


@dataclass(frozen=True)
class Correction:
    """Importance of the old policy against the one that sampled, `rho = exp(old_logprobs - rollout_logprobs)`, 1 on fresh
    samples.

    `weight`: multiply the loss by rho of the token, or by the product over the sequence, truncated at `cap`
    (truncated importance sampling, TIS; `cap=null` leaves it unbounded). `mask`: zero the loss where rho of the token, the
    product over the sequence, or its geometric mean lies outside `[low, high]` (masked importance sampling, MIS). IcePop
    (arXiv:2510.18855) is weight and mask of the token without a cap. Masked tokens stay in the average's denominator.

    It says something only where anchor and behavior differ: with `algo.old_logprobs=proximal`.
    Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025; verl's
    rollout correction.
    """

    weight: Literal["none", "token", "sequence"]
    cap: float | None
    mask: Literal["none", "token", "sequence", "geometric"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.cap is not None and (self.cap <= 0 or self.weight == "none"):
            raise RloptError(
                f"algo.correction.cap={self.cap}: needs algo.correction.weight=token or sequence, and to be above 0"
            )
        if self.mask != "none" and not 0 <= self.low < self.high:
            raise RloptError(f"algo.correction.low={self.low}: must be at least 0 and below algo.correction.high={self.high}")

    @property
    def active(self) -> bool:
        return self.weight != "none" or self.mask != "none"


@dataclass(frozen=True)
class Corrections:
    """All of them, in the order in which they are applied.

    Attributes:
        dual_clip: where `A < 0`, bound the loss at `-A * dual_clip` (arXiv:1912.09729); None: no bound. A surrogate that is no
            ratio is replaced by that constant where the token's ratio is above it: its gradient ends there just the same.
        importance: truncated or masked importance sampling.
        opsm_delta: off-policy sequence masking: zero a sequence with `A < 0` whose mean of `behavior - policy` is above this
            (DeepSeek-V3.2, arXiv:2512.02556, section 3.1); None: off.
    """

    dual_clip: float | None
    importance: Correction
    opsm_delta: float | None

    def __post_init__(self) -> None:
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise RloptError(f"algo.dual_clip={self.dual_clip}: must be above 1; null turns it off")
        if self.opsm_delta is not None and self.opsm_delta <= 0:
            raise RloptError(f"algo.opsm_delta={self.opsm_delta}: must be above 0 nats; null turns it off")

    def apply(self, policy: LossOutput, ratio_surrogate: bool, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        """`policy` with its per-token loss corrected and a metric for what each correction did.

        `ratio_surrogate` says that the loss is `-A` times a ratio (`Traits.surrogate`).
        """
        if self.dual_clip is not None:
            policy = bound_negative(policy, ratio_surrogate, batch, scores, self.dual_clip)
        if self.importance.active:
            policy = reweight(policy, batch, self.importance)
        if self.opsm_delta is not None:
            policy = mask_off_policy(policy, batch, scores, self.opsm_delta)
        return policy


NO_CORRECTIONS = Corrections(
    dual_clip=None, importance=Correction(weight="none", cap=None, mask="none", low=0.5, high=2.0), opsm_delta=None
)
"""What a loss is left alone with."""


def bound_negative(policy: LossOutput, ratio_surrogate: bool, batch: Batch, scores: PolicyOutputs, bound: float) -> LossOutput:
    """Dual clip: `-A * bound` in place of the loss where `A < 0` and the ratio is above `bound`."""
    limit = -batch.advantages * bound
    above = policy.per_token.detach() > limit if ratio_surrogate else log_ratio(batch, scores).detach().exp() > bound
    beyond = (batch.advantages < 0) & above
    per_token = torch.where(beyond, limit, policy.per_token)
    return _with(policy, per_token, "actor/pg_clipfrac_lower", beyond, batch)


def reweight(policy: LossOutput, batch: Batch, correction: Correction) -> LossOutput:
    """Truncated and masked importance sampling."""
    weight = importance_weight(batch, correction)
    return _with(policy, policy.per_token * weight, "offpolicy/masked_frac", weight == 0, batch)


def importance_weight(batch: Batch, correction: Correction) -> Tensor:
    """`[B, T]`: what `correction` multiplies the loss by; 0 where it masks."""
    log_rho = (batch.old_logprobs - batch.rollout_logprobs) * batch.mask
    whole = sequence_sum(log_rho, batch.mask).expand_as(log_rho)
    mean = sequence_mean(log_rho, batch.mask).expand_as(log_rho)
    log_weight = {"none": torch.zeros_like(log_rho), "token": log_rho, "sequence": whole}[correction.weight]
    if correction.cap is not None:
        log_weight = log_weight.clamp(max=math.log(correction.cap))
    if correction.mask == "none":
        return log_weight.exp()
    judged = {"token": log_rho, "sequence": whole, "geometric": mean}[correction.mask].exp()
    inside = (judged >= correction.low) & (judged <= correction.high)
    return torch.where(inside, log_weight, -torch.inf).exp()  # not exp times mask: that is nan where exp is inf


def mask_off_policy(policy: LossOutput, batch: Batch, scores: PolicyOutputs, delta: float) -> LossOutput:
    """OPSM: sequences that the policy has left behind are not pushed further down."""
    drift = sequence_mean(batch.rollout_logprobs - scores.logprobs.detach(), batch.mask)
    gone = (batch.advantages < 0) & (drift > delta)
    return _with(policy, torch.where(gone, 0.0, policy.per_token), "offpolicy/opsm_frac", gone, batch)


def _with(policy: LossOutput, per_token: Tensor, name: str, where: Tensor, batch: Batch) -> LossOutput:
    share = masked_mean(where, batch.mask)
    return replace(policy, per_token=per_token, metrics={**policy.metrics, name: share})
