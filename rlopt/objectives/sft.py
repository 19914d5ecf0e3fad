"""SFT: imitate recorded answers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import Average, Batch, LossOutput, Outcomes, Scores
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning: `loss_t = -log pi_t` on the answer's tokens, its end token included, averaged over all tokens.

    Source: standard. Departs from: nothing.
    """

    traits: ClassVar[Traits] = Traits(rows="answers", equal_rewards_no_credit=False)
    average: ClassVar[Average] = "token_mean"

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return outcomes.rewards

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})
