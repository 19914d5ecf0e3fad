"""Step-DPO: prefer one reasoning step to another after the same correct beginning."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlopt.errors import need
from rlopt.objectives.core import Traits
from rlopt.objectives.preferences import implicit_rewards, pair_signs, preference_metrics
from rlopt.types import Average, Batch, LossOutput, Outcomes, Scores


@dataclass(frozen=True)
class StepDPO:
    """`loss = -log sigmoid(beta * h)`, `h` the policy's gain over the reference on the right step less that on the wrong one.

    Given prompt and correct first steps, only the step's own tokens are scored, summed; no end token follows, for a step does
    not end an answer. Averaged over pairs. `label_smoothing` as in DPO.

    Source: arXiv:2406.18629, equation 2. Departs from: nothing. The paper says beta 0.5 for 72B and 0.4 for the others, its
    scripts the other way round; the one published result file is of a 7B model with 0.5.
    """

    traits: ClassVar[Traits] = Traits(rows="step_pairs", unit="group", on_policy_identity=False)
    average: ClassVar[Average] = "pair_mean"

    beta: float
    label_smoothing: float

    def __post_init__(self) -> None:
        need(self.beta > 0, "algo.beta", self.beta, "must be above 0")
        need(0 <= self.label_smoothing < 0.5, "algo.label_smoothing", self.label_smoothing, "must be at least 0 and below 0.5")

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return pair_signs(outcomes)

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        chosen, rejected, pair = implicit_rewards(batch, scores, self.beta)
        margin = chosen - rejected
        losses = -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
        metrics = preference_metrics(chosen.detach(), rejected.detach(), pair, batch)
        return LossOutput(losses[pair][:, None] * batch.mask, metrics)
