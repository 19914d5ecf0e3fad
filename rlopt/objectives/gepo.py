"""GEPO: sequence probabilities weighed against what the group's samples were expected to have."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import group_mean, standardized
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import sequence_mean


@dataclass(frozen=True)
class GEPO:
    """The denominator of the ratio is the group's, so it does not vanish where one sample was unlikely.

    `loss_i = max(-A_i w_i, -A_i clamp(w_i, 1 - clip, 1 + clip))`, `w_i = p_i / (sum_j q_j^2 / sum_j q_j)`, with `p` and `q` the
    geometric means of the token probabilities under the policy and the old one, `j` over the group; averaged over sequences.
    `A = (R - mean(R)) / (std(R) + 1e-6)`.

    Source: arXiv:2508.17850 (HeteroRL). Departs from: the authors' code, which sums over the local batch in place of the group.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio", unit="group", on_policy_identity=False)
    average: ClassVar[Average] = "sequence_mean"

    clip: float
    std: Literal["population", "sample"]

    def __post_init__(self) -> None:
        need(self.clip >= 0, "algo.clip", self.clip, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        group = torch.unique(batch.group, return_inverse=True)[1]
        p = sequence_mean(scores.logprobs, batch.mask).exp()
        q = sequence_mean(batch.old_logprobs, batch.mask).exp()[:, 0] * (
            batch.mask.sum(1) > 0
        )  # a sibling without sampled tokens does not count
        expected = (group_mean(q.square(), group) / group_mean(q, group)).nan_to_num(
            1.0
        )  # a group without sampled tokens has no loss
        weight = (p / expected[:, None]).expand_as(batch.mask)
        return clipped_surrogate(weight, batch, self.clip, self.clip)
