"""Step-DPO: prefer one reasoning step to another after the same correct beginning."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.core import Traits
from rlopt.objectives.preferences import check_preference, pair_signs, preference_loss


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
        check_preference(self.beta, self.label_smoothing)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return pair_signs(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return preference_loss(batch, scores, self.beta, self.label_smoothing)
