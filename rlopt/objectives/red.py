"""RED: REINFORCE on data that is shaped: bad samples are dropped, or weigh less than good ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import centered, group_mean, spread
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class REDDrop:
    """Of each group's bad samples, drop as many as outnumber the good ones.

    `loss_t = -A * log pi_t`, averaged over all tokens, those of dropped samples included. A sample is good when
    `R >= mean(R)`. If n more are bad, n bad ones drawn at random get `A = 0`, and for the others `A = R - mean of the kept`.

    Source: arXiv:2509.24203, "RED-Drop". Departs from: nothing; the random draw is a hash of each sample rather than a random
    generator, so that order, ranks and resuming cannot change it.
    """

    traits: ClassVar[Traits] = Traits()
    average: ClassVar[Average] = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        bad = centered(inputs) < 0
        kept = torch.ones_like(bad)
        for group in range(int(inputs.group.max()) + 1):
            rows = (inputs.group == group).nonzero()[:, 0]
            losers = rows[bad[rows]]
            surplus = max(0, 2 * len(losers) - len(rows))
            kept[losers[inputs.random_key[losers].argsort()[:surplus]]] = False
        share = group_mean(kept.double(), inputs.group)
        mean_kept = group_mean(inputs.returns * kept, inputs.group) / share
        return torch.where(kept, inputs.returns - mean_kept, 0.0) * (spread(inputs) > 0)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})


@dataclass(frozen=True)
class REDWeight:
    """Good samples weigh more and bad ones less; no clip, no importance sampling.

    `loss_t = -A * exp(A / temperature) * log pi_t`, `A = R - mean(R)`, averaged over all tokens.

    Source: arXiv:2509.24203, "RED-Weight". Departs from: a reading of the paper that takes the weighted mean as
    baseline; like the authors' code this takes the plain mean and does not normalize the weights.
    """

    traits: ClassVar[Traits] = Traits(on_policy_identity=False)
    average: ClassVar[Average] = "token_mean"

    temperature: float

    def __post_init__(self) -> None:
        need(self.temperature > 0, "algo.temperature", self.temperature, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        weight = torch.exp(batch.advantages / self.temperature)
        return LossOutput(-batch.advantages * weight * scores.logprobs * batch.mask, {})
