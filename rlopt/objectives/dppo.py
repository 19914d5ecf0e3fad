"""DPPO: tokens are masked by how far their probability has moved, not by its ratio."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import centered, standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import log_ratio


@dataclass(frozen=True)
class DPPO:
    """`loss_t = -A * M_t * r_t + drift * (log r_t)^2`, averaged over all tokens; `r_t = pi_t / old_t`.

    `M_t = 0` where the advantage pushes the token further and the divergence between the two coins "this token or another" is
    above `bound`: `divergence=tv`, `|pi_t - old_t|`, or `kl`, KL(old, policy) of the coin.
    `A = R - mean(R)`, divided by `std + 1e-6` where `std` names one.

    Source: arXiv:2602.04879 (bounds 0.2 and 0.05). Departs from: nothing. prime-rl's default is `tv` with `std=none` and
    `drift=0.001`.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio")
    average: ClassVar[Average] = "token_mean"

    divergence: Literal["tv", "kl"]
    bound: float
    drift: float
    std: Literal["none", "population", "sample"]

    def __post_init__(self) -> None:
        need(self.bound >= 0, "algo.bound", self.bound, "must be 0 or more")
        need(self.drift >= 0, "algo.drift", self.drift, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs) if self.std == "none" else standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        log_r = log_ratio(batch, scores)
        p, q = scores.logprobs.detach().exp(), batch.old_logprobs.exp()
        far = ((p - q).abs() if self.divergence == "tv" else _coin_kl(q, p)) > self.bound
        keep = ~(far & (((batch.advantages > 0) & (p > q)) | ((batch.advantages < 0) & (p < q))))
        per_token = -batch.advantages * keep * log_r.exp() + self.drift * log_r.square()
        return LossOutput(per_token * batch.mask, clip_fraction(keep, batch))


def _coin_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL of a coin with probability `q` from one with `p`."""
    return torch.xlogy(q, q / p) + torch.xlogy(1 - q, (1 - q) / (1 - p))
