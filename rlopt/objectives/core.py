"""What an objective is, and what every objective shares: the terms beside the policy loss and the usual statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlopt.types import Average, Batch, Ess, LossOutput, Max, Mean, Metric, Scores, Sum

KLEstimator = Literal["k1", "k2", "k3"]


class Objective(Protocol):
    """A frozen dataclass whose fields are the keys of its YAML."""

    average: ClassVar[Average]
    """How its per-token losses become one number."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """Credit of the samples of one group: `[G]` rewards to `[G]` advantages, float64."""
        ...

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        """The policy loss of every token `[B, T]`, minimised, before averaging; metrics by name."""
        ...


@dataclass(frozen=True)
class Terms:
    """What is added to the policy loss: `kl_coef * KL(policy, reference) - entropy_coef * entropy`, token by token."""

    kl_coef: float
    kl_estimator: KLEstimator
    entropy_coef: float


def kl(estimator: KLEstimator, policy: Tensor, reference: Tensor) -> Tensor:
    """KL of the policy against the reference, per token in nats, estimated on the tokens at hand.

    With `u = policy - reference`: k1 = u, k2 = u^2/2, k3 = exp(-u) - 1 + u (Schulman, "Approximating KL divergence",
    2020). Not clamped: k3 explodes on single tokens and should be read beside the other two.
    """
    u = policy - reference
    if estimator == "k1":
        return u
    if estimator == "k2":
        return u.square() / 2
    return torch.exp(-u) - 1 + u


def total_loss(objective: Objective, terms: Terms, batch: Batch, scores: Scores) -> LossOutput:
    """The per-token loss that is trained on, with the objective's metrics and those that every objective has."""
    policy = objective.loss(batch, scores)
    per_token = policy.per_token
    if terms.kl_coef:
        per_token = per_token + terms.kl_coef * kl(terms.kl_estimator, scores.logprobs, scores.reference)
    if terms.entropy_coef:
        per_token = per_token - terms.entropy_coef * scores.entropy
    with torch.no_grad():
        common = _statistics(batch, scores)
        common["actor/pg_loss"] = Sum((policy.per_token * batch.weights).sum().item())
    return LossOutput(per_token, {**common, **policy.metrics})


def masked_mean(values: Tensor, mask: Tensor) -> Mean:
    """The mean of `values` over tokens where `mask` is 1, as a metric."""
    return Mean((values * mask).sum().item(), mask.sum().item())


def merge(parts: list[Mapping[str, Metric]]) -> dict[str, Metric]:
    """One mapping from those of all micro-batches and ranks. Every part must have the same names."""
    merged = dict(parts[0])
    for part in parts[1:]:
        if part.keys() != merged.keys():
            raise KeyError(f"metrics differ between micro-batches: {sorted(part.keys() ^ merged.keys())}")
        merged = {name: metric.merge(part[name]) for name, metric in merged.items()}  # type: ignore[arg-type]
    return merged


def _statistics(batch: Batch, scores: Scores) -> dict[str, Metric]:
    mask = batch.mask
    policy, behavior = scores.logprobs * mask, batch.behavior * mask
    ratio = torch.exp(policy - behavior).double() * mask
    metrics: dict[str, Metric] = {
        f"actor/kl_{name}": masked_mean(kl(name, policy, scores.reference * mask), mask) for name in ("k1", "k2", "k3")
    }
    metrics["actor/entropy"] = masked_mean(scores.entropy, mask)
    metrics["offpolicy/ratio_mean"] = masked_mean(ratio, mask)
    metrics["offpolicy/ratio_max"] = Max(ratio.max().item())
    metrics["offpolicy/ess"] = Ess(ratio.sum().item(), ratio.square().sum().item(), mask.sum().item())
    metrics["offpolicy/behavior_kl"] = masked_mean(behavior - policy, mask)
    return metrics
