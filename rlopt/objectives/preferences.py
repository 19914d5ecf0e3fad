"""What preference objectives share: a pair is a group of two, the chosen answer with advantage 1, the rejected with -1."""

import torch
from torch import Tensor

from rlopt.errors import RloptError
from rlopt.objectives.ratios import sequence_sum
from rlopt.types import Batch, Mean, Metric, Outcomes, Scores


def pair_signs(outcomes: Outcomes) -> Tensor:
    """`[B]` float64: 1 for the better sample of each pair, -1 for the other.

    Raises:
        RloptError: a group has not two samples, or both are equally good.
    """
    for group, size in enumerate(outcomes.group.bincount().tolist()):
        best = outcomes.rewards[outcomes.group == group]
        if size != 2 or best[0] == best[1]:
            raise RloptError(
                f"group {group} has rewards {best.tolist()}: a preference needs two samples, one better than the other"
            )
    other = torch.stack([outcomes.rewards[outcomes.group == group].min() for group in outcomes.group])
    return torch.where(outcomes.rewards > other, 1.0, -1.0).double()


def implicit_rewards(batch: Batch, scores: Scores, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`beta * sum_t (log pi_t - log reference_t)` of the chosen and the rejected answer of each pair, `[P]` and `[P]`, with the
    policy's gradient; and `[B]`, which pair a sequence is of."""
    pair = torch.unique(batch.group, return_inverse=True)[1]
    reward = beta * sequence_sum(scores.logprobs - batch.reference, batch.mask)[:, 0]
    sign = batch.advantages.sum(1).sign()
    zero = reward.new_zeros(int(pair.max()) + 1)
    return zero.index_add(0, pair, reward * (sign > 0)), zero.index_add(0, pair, reward * (sign < 0)), pair


def preference_metrics(chosen: Tensor, rejected: Tensor, pair: Tensor, batch: Batch) -> dict[str, Metric]:
    """Means over pairs, exact over ranks and micro-batches: implicit rewards, their margin, and how often it is above 0."""
    spoken = batch.mask.new_zeros(len(chosen)).index_add(0, pair, batch.mask.sum(1)) > 0  # silent copies do not count
    margin = chosen - rejected
    values = {"margin": margin, "accuracy": margin > 0, "chosen": chosen, "rejected": rejected}
    count = spoken.sum().item()
    return {f"preference/{name}": Mean((value * spoken).sum().item(), count) for name, value in values.items()}
