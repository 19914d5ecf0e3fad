"""Estimators of KL(policy, reference) from the tokens at hand. Pure functions of `[B, T]` tensors, nats per token."""

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3", "abs", "k3_corrected", "k3_unbiased"]


def kl(estimator: KLEstimator, policy: Tensor, reference: Tensor, log_ratio: Tensor) -> Tensor:
    """KL of the policy against the reference, per token.

    With `u = policy - reference` and `r = exp(log_ratio)`, the ratio of the policy to the one that sampled:
    `k1 = u`, `k2 = u^2 / 2`, `k3 = exp(-u) - 1 + u` (Schulman, "Approximating KL divergence", 2020), `abs = |u|`,
    `k3_unbiased = r k3` (DeepSeek-V3.2, arXiv:2512.02556; TRL's bias correction), differentiated through `r` too,
    `k3_corrected = clamp(r, 0, 2) k3` (Trinity-RFT). Only the last two read `log_ratio`.

    k1 cannot be a loss: on fixed samples its gradient does not depend on the reference. Departs from verl and
    Trinity-RFT in not clamping k3, which explodes on single tokens and should be read beside the other two.
    """
    u = policy - reference
    if estimator == "k1":
        return u
    if estimator == "k2":
        return u.square() / 2
    if estimator == "abs":
        return u.abs()
    k3 = torch.exp(-u) - 1 + u
    if estimator == "k3":
        return k3
    ratio = torch.exp(log_ratio)
    return (ratio.clamp(0, 2) if estimator == "k3_corrected" else ratio) * k3
