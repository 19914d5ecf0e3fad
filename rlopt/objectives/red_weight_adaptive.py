"""RED-Weight with a temperature of each group's own, under a one-side clip."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, log_ratio, one_side


@dataclass(frozen=True)
class REDWeightAdaptive:
    """Weigh good samples up only where a group's long bad answers would otherwise win.

    `loss_t = -A * M_t * log pi_t`, `M_t = one_side(r_t)`, averaged over all tokens, with `A_i = a_i * exp(a_i / T)`,
    `a = R - mean(R)`. A group whose `sum_i a_i length_i >= 0` is not weighted. Otherwise T makes
    `sum_i a_i exp(a_i / T) length_i` nearly 0: bisection of [0.8, 100], at most 20 halvings, until the bracket is below 0.05.

    Source: "CoD", arXiv:2606.20002, and Trinity-RFT's `cod_advantage`. Departs from: nothing known; the paper itself was not
    read, the rule is the code's.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        away = centered(inputs)
        weighted = away.clone()
        for group in range(int(inputs.group.max()) + 1):
            mine = inputs.group == group
            temperature = balancing_temperature(away[mine], inputs.lengths[mine])
            weighted[mine] = away[mine] * torch.exp(away[mine] / temperature)
        return weighted

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        keep = one_side(log_ratio(batch, scores).detach().exp(), batch.advantages, self.clip_low, self.clip_high)
        return LossOutput(-batch.advantages * keep * scores.logprobs * batch.mask, clip_fraction(keep, batch))


def balancing_temperature(away: Tensor, lengths: Tensor) -> float:
    """The T at which a group's weighted advantages, times lengths, sum to nearly 0; inf where no weight is needed."""
    if (away * lengths).sum() >= 0:
        return float("inf")
    low, high = 0.8, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        if (away * torch.exp(away / middle) * lengths).sum() < 0:
            high = middle
        else:
            low = middle
        if high - low < 0.05:
            break
    return middle
