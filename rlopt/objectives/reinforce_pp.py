"""REINFORCE++: returns whitened over the whole batch in place of the group, under PPO's clip."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered, returns_to_go, whitened
from rlopt.objectives.core import Traits, clipped_surrogate
from rlopt.objectives.ratios import check_clip, log_ratio


@dataclass(frozen=True)
class REINFORCEPP:
    """`loss_t = max(-A_t r_t, -A_t clamp(r_t, 1 - clip_low, 1 + clip_high))`, averaged over all tokens.

    `A_t` is the reward less the KL penalties of this token and all after it (with `kl.place=reward`), whitened over all
    tokens of the step. With `group_baseline` the group's mean is taken away first ("REINFORCE++-baseline").

    Source: arXiv:2501.03262. Departs from: nothing; no discount, and the KL penalty is the run's choice (`kl.coef`).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor", surrogate="ratio", equal_rewards_no_credit=False)
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    group_baseline: bool

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        returns = centered(inputs)[:, None] * inputs.mask if self.group_baseline else returns_to_go(inputs)
        return whitened(returns, inputs.mask)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return clipped_surrogate(log_ratio(batch, scores).exp(), batch, self.clip_low, self.clip_high)
