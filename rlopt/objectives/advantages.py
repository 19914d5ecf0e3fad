"""Advantages of a step's samples, `[B]` float64 (`whitened`: `[B, T]`). Pure functions that objectives choose from."""

from typing import Literal

import torch

from rlopt.core.batches import AdvantageInputs
from rlopt.core.shapes import Counts, Mask, Sequence, Tokens

EPSILON = 1e-6
"""Added to a standard deviation before dividing, as verl and Trinity-RFT do; TRL adds 1e-4."""


def group_mean(values: Sequence, group: Counts) -> Sequence:
    """`[B]`: for every sample the mean of `values` `[B]` over its group."""
    groups = int(group.max()) + 1
    total = values.new_zeros(groups).index_add(0, group, values)
    return (total / group.bincount(minlength=groups))[group]


def group_max(values: Sequence, group: Counts) -> Sequence:
    """`[B]`: for every sample the largest of `values` `[B]` in its group."""
    start = values.new_full((int(group.max()) + 1,), -torch.inf)
    return start.scatter_reduce(0, group, values, "amax")[group]


def group_size(group: Counts) -> Sequence:
    """`[B]` float64: for every sample the number of its siblings, itself included."""
    return group.bincount()[group].double()


def centered(inputs: AdvantageInputs) -> Sequence:
    """`A_i = R_i - mean(R)`, the mean over its group. 0 where all rewards are one, exactly."""
    returns = inputs.returns
    away = returns - group_mean(returns, inputs.group)
    return torch.where(spread(inputs) == 0, 0.0, away)


def standardized(inputs: AdvantageInputs, std: Literal["population", "sample"]) -> Sequence:
    """`A_i = (R_i - mean(R)) / (std(R) + 1e-6)`; population divides by G, sample by G - 1. A group of one gets 0."""
    away, size = centered(inputs), group_size(inputs.group)
    variance = group_mean(away.square(), inputs.group)
    if std == "sample":
        variance = variance * size / (size - 1).clamp(min=1)
    return away / (variance.sqrt() + EPSILON)


def leave_one_out(inputs: AdvantageInputs) -> Sequence:
    """`A_i = R_i - mean of the siblings' R = G / (G - 1) (R_i - mean(R))`. A group of one gets 0."""
    size = group_size(inputs.group)
    return centered(inputs) * size / (size - 1).clamp(min=1)


def above_log_mean_exp(inputs: AdvantageInputs, tau: float) -> Sequence:
    """`A_i = R_i - tau * log(mean(exp(R / tau)))`, the mean over its group. 0 where all rewards are one, exactly."""
    returns = inputs.returns
    top = group_max(returns, inputs.group)
    soft = top + tau * group_mean(((returns - top) / tau).exp(), inputs.group).log()
    return torch.where(spread(inputs) == 0, 0.0, returns - soft)


def returns_to_go(inputs: AdvantageInputs) -> Tokens:
    """`[B, T]`: the reward less the penalties of this token and all that follow (no discount), 0 where the mask is 0."""
    ahead = inputs.penalties.flip(1).cumsum(1).flip(1)
    return (inputs.rewards[:, None] - ahead) * inputs.mask


def by_turn(inputs: AdvantageInputs) -> Tokens:
    """`[B, T]`: of each token in the k-th turn `A = (G_k - mean(G_k)) / (std(G_k) + 1e-6)`, over the episodes of its group that
    have a k-th turn, with `G_k` the rewards of turn k and all that follow.

    What the return has beyond the rewards of its turns counts in every turn. `rlopt.objectives.advantages:by_turn` as
    `algo.advantages` takes the place of an objective's own. Source: the turn-level advantage of Zeng et al., arXiv:2505.11821,
    with returns-to-go in the place of each turn's reward.
    """
    rewards, mask = inputs.turn_rewards, inputs.mask
    beyond = inputs.returns - rewards.sum(1)
    ahead = rewards.flip(1).cumsum(1).flip(1) + beyond[:, None]
    begins = mask.clone()
    begins[:, 1:] *= 1 - mask[:, :-1]
    turn = (begins.cumsum(1) * mask).long()
    found = torch.zeros_like(ahead)
    for number in range(1, int(turn.max()) + 1):
        first = (turn == number).long().argmax(1)
        having = ((turn == number).any(1)).nonzero()[:, 0]
        group, value = inputs.group[having], ahead[having, first[having]]
        away = value - group_mean(value, group)
        alike = group_max(value, group) + group_max(-value, group) == 0
        scaled = torch.where(alike, 0.0, away / (group_mean(away.square(), group).sqrt() + EPSILON))
        found[having] += scaled[:, None] * (turn[having] == number)
    return found


def whitened(values: Tokens, mask: Mask) -> Tokens:
    """`[B, T]`: `(v - mean) / sqrt(variance + 1e-8)` over all tokens of the step, the variance divided by count - 1."""
    spoken = values[mask > 0].double()
    variance = spoken.var() if len(spoken) > 1 else spoken.new_zeros(())
    return (values.double() - spoken.mean()) / (variance + 1e-8).sqrt() * mask


def overlong_penalty(lengths: Sequence | Counts, limit: int, buffer: int) -> Sequence:
    """`[B]`: 0 up to `limit - buffer` tokens, then falling to -1 at `limit`, -1 beyond. DAPO, arXiv:2503.14476, equation 13."""
    if buffer == 0:
        return torch.zeros_like(lengths, dtype=torch.float64)
    return ((limit - buffer - lengths.double()) / buffer).clamp(-1, 0)


def spread(inputs: AdvantageInputs) -> Sequence:
    """`[B]`: largest less smallest return of the group; rounding cannot make equal rewards differ."""
    return group_max(inputs.returns, inputs.group) + group_max(-inputs.returns, inputs.group)
