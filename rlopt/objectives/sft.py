"""SFT: imitate recorded answers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.core import Traits


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning: `loss_t = -log pi_t` on the answer's tokens, its end token included, averaged over all tokens.

    Source: standard. Departs from: nothing.
    """

    traits: ClassVar[Traits] = Traits(rows="answers", equal_rewards_no_credit=False)
    average: ClassVar[Average] = "token_mean"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return inputs.rewards

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(-batch.advantages * scores.logprobs * batch.mask, {})
