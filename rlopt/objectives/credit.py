"""From sequences and their rewards to updates with advantages and loss weights."""

from dataclasses import replace
from typing import get_args

import torch

from rlopt.core.batches import AdvantageInputs, Average, TokenInputs
from rlopt.core.errors import RloptError
from rlopt.core.shapes import Counts, Sequence, Tokens
from rlopt.core.table import Table, Update
from rlopt.objectives.advantages import overlong_penalty
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.divergence import kl


def compute_advantages(
    sequences: Table,
    old_logprobs: Tokens | None,
    reference: Tokens | None,
    objective: Objective,
    terms: LossTerms,
    updates: int = 1,
) -> list[Update]:
    """What the optimizer updates of one step learn from: `updates` parts of whole groups, each with weights of its own.

    Advantages are computed over the whole step, before it is split. A part in which the overlong filter leaves no token is
    left out.

    Args:
        old_logprobs, reference: `[B, T]` nats, as in `Update`.
    """
    advantages = objective.advantages(advantage_inputs(sequences, old_logprobs, reference, terms)).to(sequences.dtype)
    learned = ~sequences.truncated if terms.overlong_filter else torch.ones_like(sequences.truncated)
    sampled = sequences.sampled * learned
    groups, limit = int(sequences.group.max()) + 1, terms.limit
    whole = Update(sequences, advantages, torch.zeros_like(sampled), False, learned, old_logprobs, reference)
    parts = []
    for part in range(updates):
        mine = (sequences.group * updates // groups == part).nonzero()[:, 0].tolist()
        if mine and sampled[mine].any():
            weights = sequence_weights(sampled[mine], objective.average, sequences.group[mine], limit)
            parts.append(replace(whole.take(mine), weights=weights, opening=objective.average == "pair_mean"))
    if not parts:
        raise RloptError(
            "every sample of the step was truncated and algo.overlong.filter leaves those out; raise rollout.max_new_tokens"
        )
    return parts


def advantage_inputs(
    sequences: Table, old_logprobs: Tokens | None, reference: Tokens | None, terms: LossTerms
) -> AdvantageInputs:
    """The rewards of a step, less the overlong penalty, and the KL penalties of each token."""

    def tokens() -> TokenInputs:
        rows = sequences.padded()
        mask, old = rows.mask, rows.rollout_logprobs if old_logprobs is None else old_logprobs
        penalties = torch.zeros_like(mask, dtype=torch.float64)
        if penalized:
            assert reference is not None, "the config refuses algo.kl.every where KL is in the reward"
            log_ratio = (old - rows.rollout_logprobs) * mask
            penalties = terms.kl_coef * kl(terms.kl_estimator, old * mask, reference * mask, log_ratio).double()
        return TokenInputs(penalties, mask, rows.rollout_logprobs, old, sequences.turn_rewards())

    penalized = terms.kl_coef > 0 and terms.kl_place == "reward"
    buffer = round(terms.overlong_buffer * terms.limit)
    rewards = sequences.rewards + overlong_penalty(sequences.sampled, terms.limit, buffer)
    made = tokens() if penalized else None
    return AdvantageInputs(
        rewards=rewards,
        returns=rewards if made is None else rewards - made.penalties.sum(1),
        group=sequences.group,
        lengths=sequences.sampled.double(),
        shape=sequences.shape,
        draw=lambda: sequences.random_key,
        pad=tokens if made is None else lambda: made,
    )


def sequence_weights(sampled: Sequence, average: Average, group: Counts, limit: int) -> Sequence:
    """The weight `[B]` of every token of a sequence, in a whole optimizer update with `sampled` `[B]` tokens learned from.

    With M such tokens, T_i of them in sequence i, N sequences that have any, P groups and L = `limit`:

    | average | weight of a token | known as |
    |---|---|---|
    | token_mean | 1 / M | DAPO's; verl `token-mean` |
    | sequence_mean | 1 / (N T_i) | GRPO's; verl `seq-mean-token-mean` |
    | sequence_sum | 1 / N | verl `seq-mean-token-sum` |
    | constant | 1 / (N L) | TRL `dr_grpo` |
    | constant_sum | 1 / L | verl `seq-mean-token-sum-norm` |
    | pair_mean | 1 / P on the first token of a group's first sequence, else 0 | losses of a whole group |
    """
    if not sampled.any():
        raise RloptError("a batch whose mask is empty has nothing to learn from")
    there = (sampled > 0).to(sampled.dtype)
    if average == "token_mean":
        return there / sampled.sum()
    if average == "sequence_mean":
        return there / sampled.clamp(min=1) / there.sum()
    if average == "sequence_sum":
        return there / there.sum()
    if average == "constant":
        return there / (there.sum() * limit)
    if average == "constant_sum":
        return there / limit
    if average != "pair_mean":
        raise RloptError(f"average={average}: no such average; one of {', '.join(get_args(Average))}")
    first = torch.ones_like(sampled)
    first[1:] = (group[1:] != group[:-1]).to(sampled.dtype)
    return first / first.sum()
