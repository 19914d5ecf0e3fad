"""VESPO: a smooth weight of the sequence's ratio that fades on both sides."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import standardized
from rlopt.objectives.core import Traits
from rlopt.objectives.ratios import log_ratio, sequence_sum


@dataclass(frozen=True)
class VESPO:
    """`loss_t = -A * sg(W^k exp(lambda (1 - W))) * log pi_t`, `W` the product of the sequence's ratios, over all tokens.

    `k` and `lambda` by the sign of `A`; `log W` is held within [log 1e-8, 20]. `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2602.10693, constants of its code and TRL's (2, 3 and 3, 2). Departs from: the docstrings there (1.5, 4, 2.5).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    k_positive: float
    lambda_positive: float
    k_negative: float
    lambda_negative: float
    std: Literal["population", "sample"]

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        log_w = sequence_sum(log_ratio(batch, scores).detach(), batch.mask).clamp(min=math.log(1e-8), max=20.0)
        positive = batch.advantages >= 0
        k = torch.where(positive, self.k_positive, self.k_negative)
        fade = torch.where(positive, self.lambda_positive, self.lambda_negative)
        weight = (k * log_w + fade * (1 - log_w.exp())).exp()
        return LossOutput(-batch.advantages * weight * scores.logprobs * batch.mask, {})
