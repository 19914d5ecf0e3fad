"""What preference objectives share: a pair is a group of two, the chosen answer with advantage 1, the rejected with -1."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlopt.core.batches import AdvantageInputs, Batch, LossOutput, PolicyOutputs
from rlopt.core.errors import RloptError, need
from rlopt.core.reduce import Metric, masked_mean
from rlopt.objectives.advantages import group_max, group_size
from rlopt.objectives.ratios import sequence_sum


def pair_signs(inputs: AdvantageInputs) -> Tensor:
    """`[B]` float64: 1 for the better sample of each pair, -1 for the other.

    Raises:
        RloptError: a group has not two samples, or both are equally good.
    """
    rewards, group = inputs.rewards, inputs.group
    worse = -group_max(-rewards, group)
    unclear = (group_size(group) != 2) | (group_max(rewards, group) == worse)
    if unclear.any():
        first = int(group[unclear][0])
        has = rewards[group == first].tolist()
        raise RloptError(f"group {first} has rewards {has}: a preference needs two samples, one better than the other")
    return torch.where(rewards > worse, 1.0, -1.0).double()


def check_preference(beta: float, label_smoothing: float) -> None:
    """Refuse values that turn the preference round."""
    need(beta > 0, "algo.beta", beta, "must be above 0")
    need(0 <= label_smoothing < 0.5, "algo.label_smoothing", label_smoothing, "must be at least 0 and below 0.5")


def preference_loss(batch: Batch, scores: PolicyOutputs, beta: float, label_smoothing: float) -> LossOutput:
    """`-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)` of each pair, on all tokens of both sides, with its metrics."""
    chosen, rejected, pair = implicit_rewards(batch, scores, beta)
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    metrics = preference_metrics(chosen.detach(), rejected.detach(), pair, batch)
    return LossOutput(losses[pair][:, None] * batch.mask, metrics)


def implicit_rewards(batch: Batch, scores: PolicyOutputs, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`beta * sum_t (log pi_t - log reference_t)` of the chosen and the rejected answer of each pair, `[P]` and `[P]`, with the
    policy's gradient; and `[B]`, which pair a sequence is of."""
    pair = torch.unique(batch.group, return_inverse=True)[1]
    assert batch.reference is not None, "recorded rows are scored by the reference for every step"
    reward = beta * sequence_sum(scores.logprobs - batch.reference, batch.mask)[:, 0]
    sign = batch.advantages.sum(1).sign()
    zero = reward.new_zeros(int(pair.max()) + 1)
    return zero.index_add(0, pair, reward * (sign > 0)), zero.index_add(0, pair, reward * (sign < 0)), pair


def preference_metrics(chosen: Tensor, rejected: Tensor, pair: Tensor, batch: Batch) -> dict[str, Metric]:
    """Means over pairs, exact over ranks and micro-batches: implicit rewards, their margin, and how often it is above 0."""
    spoken = batch.mask.new_zeros(len(chosen)).index_add(0, pair, batch.mask.sum(1)) > 0  # dummy copies do not count
    margin = chosen - rejected
    values = {"margin": margin, "accuracy": margin > 0, "chosen": chosen, "rejected": rejected}
    return {f"preference/{name}": masked_mean(value, spoken) for name, value in values.items()}
