"""REC: REINFORCE with a group baseline, clipped, with or without importance sampling. One paper, four clips.

All of them are `loss_t = -A * sg(M_t W_t) * log pi_t` averaged over all tokens, masked ones included, with the ratio
`r_t = pi_t / old_t` and `W_t = r_t` (importance sampling) or 1; they differ in the mask `M_t`.

Source: arXiv:2509.24203, section 4. Departs from: nothing; the value of the loss is the authors' code's, a masked
REINFORCE loss, so PPO-clip has another value and the same gradient as `OneSide` with importance sampling.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.advantages import centered, standardized
from rlopt.objectives.core import Traits, clip_fraction
from rlopt.objectives.ratios import check_clip, log_ratio, one_side, ring, sequence_ratio, two_side


@dataclass(frozen=True)
class OneSide:
    """`M_t`: the ratio has not passed the bound that the advantage pushes it to (`ratios.one_side`).

    `A = R - mean(R)`, divided by a standard deviation where `std` names one: with importance sampling and the population's,
    it is what the paper plots as "GRPO". The figure clips at (0.2, 0.2); the paper recommends (0.6, 2.0).
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    importance_sampling: bool
    std: Literal["none", "population", "sample"]

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs) if self.std == "none" else standardized(inputs, self.std)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = log_ratio(batch, scores).detach().exp()
        keep = one_side(ratio, batch.advantages, self.clip_low, self.clip_high)
        return _masked_reinforce(batch, scores, keep, ratio if self.importance_sampling else None)


@dataclass(frozen=True)
class TwoSide:
    """`M_t`: the ratio is within `[1 - clip_low, 1 + clip_high]`, whatever the advantage. `A = R - mean(R)`."""

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    importance_sampling: bool

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = log_ratio(batch, scores).detach().exp()
        keep = two_side(ratio, self.clip_low, self.clip_high)
        return _masked_reinforce(batch, scores, keep, ratio if self.importance_sampling else None)


@dataclass(frozen=True)
class Ring:
    """`M_t`: only a ring is masked; tokens far out on the safe side are let in again (`ratios.ring`). `A = R - mean(R)`."""

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    clip_low: float
    clip_high: float
    outer_low: float
    outer_high: float
    importance_sampling: bool

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = log_ratio(batch, scores).detach().exp()
        keep = ring(ratio, batch.advantages, self.clip_low, self.clip_high, self.outer_low, self.outer_high)
        return _masked_reinforce(batch, scores, keep, ratio if self.importance_sampling else None)


@dataclass(frozen=True)
class SequenceOneSide:
    """`OneSide` with the sequence's geometric-mean ratio in place of the token's, averaged within sequences first.

    `A = R - mean(R)`. Experimental in the authors' code ("gspo-one-side").
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "sequence_mean"

    clip_low: float
    clip_high: float
    importance_sampling: bool

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = sequence_ratio(batch, scores).detach()
        keep = one_side(ratio, batch.advantages, self.clip_low, self.clip_high)
        return _masked_reinforce(batch, scores, keep, ratio if self.importance_sampling else None)


def _masked_reinforce(batch: Batch, scores: PolicyOutputs, keep: Tensor, weight: Tensor | None) -> LossOutput:
    coefficient = batch.advantages * keep if weight is None else (batch.advantages * weight).where(keep, 0.0)
    return LossOutput(-coefficient * scores.logprobs * batch.mask, clip_fraction(keep, batch))
