"""TOPR: good answers are imitated, bad ones pushed down only as far as the policy still gives them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import log_ratio, sequence_sum


@dataclass(frozen=True)
class TOPR:
    """`loss_i = -A_i * alpha_i * sum_t log pi_t`, averaged over sequences; `alpha = 1` where `A >= 0`, else `min(W_i, 1)`.

    `W_i` is the product of the sequence's ratios, held constant. `rewards=signed`: `A = 2 R - 1 - baseline` for rewards of 0
    and 1, no group mean; the baseline tunes the effective share of positives.

    Source: arXiv:2503.14286 (rewards of -1 and 1). Departs from: Trinity-RFT, which takes each token's ratio
    (`ratio=token`, averaged over all tokens) and rewards relative to the group (`rewards=centered`).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", equal_rewards_no_credit=False)

    ratio: Literal["sequence", "token"]
    rewards: Literal["signed", "centered"]
    baseline: float

    @property
    def average(self) -> Average:
        return "sequence_sum" if self.ratio == "sequence" else "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return 2 * inputs.returns - 1 - self.baseline if self.rewards == "signed" else centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        moved = log_ratio(batch, scores).detach()
        moved = sequence_sum(moved, batch.mask) if self.ratio == "sequence" else moved
        taper = torch.where(batch.advantages < 0, moved.clamp(max=0).exp(), 1.0)
        per_token = -batch.advantages * taper * scores.logprobs * batch.mask
        return LossOutput(per_token, clip_fraction((batch.advantages >= 0) | (moved <= 0), batch))
