"""An objective, an advantage function and a reward of your own, without a fork.

Put a file like this where you start the run, and name what is in it (here: `cd examples` first):

    python -m rlopt.train +algo=reinforce algo.objective=own_objective:Capped +algo.cap=2.0     # the objective and its field
    python -m rlopt.train +algo=grpo algo.advantages=own_objective:rank                         # under any algorithm's loss
    python -m rlopt.train +algo=grpo reward.fn=own_objective:short_and_right                    # a reward

or keep the two lines of an objective in a file `my_conf/algo/capped.yaml`, and start with `--config-dir my_conf +algo=capped`:

    # @package algo
    defaults: [_group_relative@_here_, _self_]
    name: capped
    objective: own_objective:Capped
    cap: 2.0

Test it before you spend GPU hours on it:

    python -m rlopt.objectives check own_objective:Capped cap=2.0
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.data import arithmetic
from rlopt.objectives.advantages import centered, group_mean
from rlopt.objectives.core import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs, Traits, clip_fraction
from rlopt.objectives.ratios import log_ratio


@dataclass(frozen=True)
class Capped:
    """REINFORCE with a truncated importance weight: `loss_t = -A * sg(min(r_t, cap)) * log pi_t`, over all tokens."""

    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    cap: float

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return centered(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        ratio = log_ratio(batch, scores).detach().exp()
        per_token = -batch.advantages * ratio.clamp(max=self.cap) * scores.logprobs * batch.mask
        return LossOutput(per_token, clip_fraction(ratio <= self.cap, batch))


def rank(inputs: AdvantageInputs) -> Tensor:
    """`[B]`: each sample's rank in its group, from -1 to 1; ties share the mean of their places."""
    returns, same = inputs.returns, inputs.group[:, None] == inputs.group
    above = ((returns[:, None] > returns) & same).double().sum(1) - ((returns[:, None] < returns) & same).double().sum(1)
    return above / group_mean(same.double().sum(1) - 1, inputs.group).clamp(min=1)


def short_and_right(prompt: str, completion: str, answer: str, **extra: object) -> dict[str, float]:
    """1 for the right answer, less a hundredth for every character. `score` is the reward, the rest goes to `samples.jsonl`."""
    right = arithmetic.reward(prompt, completion, answer)
    return {"score": right - len(completion) / 100, "right": right}


if __name__ == "__main__":
    from rlopt.objectives.conformance import check

    torch.set_printoptions(precision=3)
    for finding in check(Capped(cap=2.0)):
        print("ok    " if finding.passed else "FAILED", finding.check, "|", finding.evidence)
