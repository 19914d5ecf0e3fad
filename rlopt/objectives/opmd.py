"""OPMD, online policy mirror descent: REINFORCE with a square penalty on how far the policy has moved, in three forms."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import need
from rlopt.objectives.advantages import above_log_mean_exp, centered
from rlopt.objectives.core import Traits
from rlopt.objectives.ratios import log_ratio, sequence_sum


@dataclass(frozen=True)
class OPMD:
    """Kimi's form: the penalty is on the whole sequence's log-ratio.

    `loss_i = -A_i * sum_t log pi_t + tau / 2 * (sum_t log r_t)^2`, `A = R - mean(R)`, `r_t = pi_t / old_t`, averaged over
    sequences.

    Source: Kimi k1.5, arXiv:2501.12599, section 2.3.2. Departs from: the log-partition `tau log Z`, for which it takes the
    group's mean reward, as the paper does in practice.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "sequence_sum"

    tau: float

    def __post_init__(self) -> None:
        need(self.tau >= 0, "algo.tau", self.tau, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        moved = sequence_sum(log_ratio(batch, scores), batch.mask).square()
        spread = moved / batch.mask.sum(1, keepdim=True).clamp(min=1)  # over its tokens, so that their sum is the penalty
        return LossOutput((-batch.advantages * scores.logprobs + self.tau / 2 * spread) * batch.mask, {})


@dataclass(frozen=True)
class OPMDToken:
    """Trinity-RFT's form: the penalty is on each token's log-ratio.

    `loss_t = -A * log pi_t + coef * (log r_t)^2`, `A = R - mean(R)`, averaged over all tokens.

    Source: arXiv:2509.24203, "REP-OPMD", as its code has it. Departs from: the paper's text, which squares the sequence's.
    """

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    coef: float

    def __post_init__(self) -> None:
        need(self.coef >= 0, "algo.coef", self.coef, "must be 0 or more")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        moved = log_ratio(batch, scores).square()
        return LossOutput((-batch.advantages * scores.logprobs + self.coef * moved) * batch.mask, {})


@dataclass(frozen=True)
class OPMDScaled:
    """What Trinity-RFT calls `opmd`: REINFORCE divided by `1 + tau`, without any penalty.

    `loss_t = -A * log pi_t / (1 + tau)`, averaged over all tokens. `A = R - mean(R)`, or with `baseline=log_mean_exp`
    `A = R - tau log(mean(exp(R / tau)))`.

    Source: Trinity-RFT 0.6.0. Departs from: mirror descent, whose regularizer it lacks.
    """

    traits: ClassVar[Traits] = Traits(on_policy_identity=False)
    average: ClassVar[Average] = "token_mean"

    tau: float
    baseline: Literal["mean", "log_mean_exp"]

    def __post_init__(self) -> None:
        need(self.tau > 0, "algo.tau", self.tau, "must be above 0")

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs) if self.baseline == "mean" else above_log_mean_exp(inputs, self.tau)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages / (1 + self.tau) * scores.logprobs * batch.mask, {})
