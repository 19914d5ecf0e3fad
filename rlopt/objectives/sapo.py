"""SAPO: a smooth gate in place of the clip."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits
from rlopt.objectives.ratios import log_ratio


@dataclass(frozen=True)
class SAPO:
    """`loss_t = -A * 4 / tau * sigmoid(tau (r_t - 1))`, differentiated through `r_t`; tau by the sign of `A`.

    Averaged within sequences first. The gradient's coefficient is `A * 4 p (1 - p) r` with `p` the sigmoid: `A` on policy,
    fading on both sides. `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2511.20347; verl, TRL, SkyRL and AReaL agree. Departs from: Trinity-RFT 0.6.0, which holds the gate constant
    (`-A * sg(4 / tau * sigmoid) * log pi_t`, over all tokens): `gate_only=true`.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")

    tau_positive: float
    tau_negative: float
    std: Literal["population", "sample"]
    gate_only: bool

    def __post_init__(self) -> None:
        need(self.tau_positive > 0, "algo.tau_positive", self.tau_positive, "must be above 0")
        need(self.tau_negative > 0, "algo.tau_negative", self.tau_negative, "must be above 0")

    @property
    def average(self) -> Average:
        return "token_mean" if self.gate_only else "sequence_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        tau = torch.full_like(batch.mask, self.tau_negative).masked_fill(batch.advantages > 0, self.tau_positive)
        gate = 4 / tau * torch.sigmoid(tau * (log_ratio(batch, scores).exp() - 1))
        per_token = gate.detach() * scores.logprobs if self.gate_only else gate
        return LossOutput(-batch.advantages * per_token * batch.mask, {})
