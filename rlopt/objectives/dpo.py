"""DPO: prefer one whole answer to another, as the reference-relative log-probabilities say it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.core import Traits
from rlopt.objectives.preferences import check_preference, pair_signs, preference_loss


@dataclass(frozen=True)
class DPO:
    """`loss = -log sigmoid(beta * h)`, `h` the policy's gain over the reference on the chosen answer less that on the rejected,
    log-probabilities summed over all tokens of the answers, end token included; averaged over pairs.

    With `label_smoothing = e`: `-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)` (arXiv:2305.18290, and cDPO).
    Source: arXiv:2305.18290. Departs from: Trinity-RFT 0.6.0, which sums a micro-batch into one logit, a mistake; TRL 0.8.5
    logged the margins of rank 0 alone, here they are exact over all ranks.
    """

    traits: ClassVar[Traits] = Traits(rows="pairs", unit="group", on_policy_identity=False)
    average: ClassVar[Average] = "pair_mean"

    beta: float
    label_smoothing: float

    def __post_init__(self) -> None:
        check_preference(self.beta, self.label_smoothing)

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return pair_signs(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return preference_loss(batch, scores, self.beta, self.label_smoothing)
