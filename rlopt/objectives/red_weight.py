"""RED-Weight: REINFORCE with a group baseline in which good samples weigh more and bad ones less."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.objectives.advantages import centered
from rlopt.objectives.core import masked_mean
from rlopt.types import Average, Batch, LossOutput, Scores


@dataclass(frozen=True)
class RedWeight:
    """Shapes the data rather than the update: no clip, no importance sampling.

    `loss_t = -A * exp(A / temperature) * log pi_t`, `A = R - mean(R)`, averaged over all tokens.

    Source: arXiv:2509.24203, "RED-Weight". Departs from: a reading of the paper that takes the weighted mean as
    baseline; like the authors' code this takes the plain mean and does not normalise the weights.
    """

    average: ClassVar[Average] = "token_mean"

    temperature: float

    def advantages(self, rewards: Tensor) -> Tensor:
        return centered(rewards)

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        weight = torch.exp(batch.advantages / self.temperature)
        per_token = -batch.advantages * weight * scores.logprobs * batch.mask
        return LossOutput(per_token, {"actor/pg_clipfrac": masked_mean(torch.zeros_like(batch.mask), batch.mask)})
