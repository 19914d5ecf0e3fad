"""From sequences and their rewards to batches with advantages and loss weights."""

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, Sequences
from rlopt.core.errors import RloptError
from rlopt.core.shapes import Counts, Tokens
from rlopt.objectives.advantages import overlong_penalty
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.divergence import kl


def compute_advantages(
    sequences: Sequences,
    old_logprobs: Tensor,
    reference: Tensor | None,
    objective: Objective,
    terms: LossTerms,
    updates: int = 1,
) -> list[Batch]:
    """What the optimizer updates of one step learn from: `updates` batches of whole groups, each with weights of its own.

    Advantages are computed over the whole step, before it is split. A batch in which the overlong filter leaves no token is
    left out.

    Args:
        old_logprobs, reference: `[B, T]` nats, as in `Batch`.
    """
    inputs = advantage_inputs(sequences, old_logprobs, reference, terms)
    advantages = objective.advantages(inputs).to(sequences.mask.dtype)
    advantages = advantages if advantages.dim() == 2 else advantages[:, None]
    mask = sequences.mask
    if terms.overlong_filter:
        mask = mask * ~sequences.truncated[:, None]
    whole = Batch(
        token_ids=sequences.token_ids,
        lengths=sequences.lengths,
        mask=mask,
        rollout_logprobs=sequences.rollout_logprobs * mask,
        old_logprobs=old_logprobs * mask,
        reference=None if reference is None else reference * mask,
        advantages=advantages * mask,
        weights=torch.zeros_like(mask),
        group=sequences.group,
        lag=sequences.lag,
    )
    groups = int(sequences.group.max()) + 1
    batches = []
    for part in range(updates):
        mine = (sequences.group * updates // groups == part).nonzero()[:, 0].tolist()
        if mine and mask[mine].any():
            batch = whole.take(mine)
            batches.append(replace(batch, weights=loss_weights(batch.mask, objective.average, batch.group, terms.limit)))
    if not batches:
        raise RloptError(
            "every sample of the step was truncated and algo.overlong.filter leaves those out; raise rollout.max_new_tokens"
        )
    return batches


def advantage_inputs(sequences: Sequences, old_logprobs: Tokens, reference: Tokens | None, terms: LossTerms) -> AdvantageInputs:
    """The rewards of a step, less the overlong penalty, and the KL penalties of each token."""
    mask = sequences.mask
    penalties = torch.zeros_like(mask, dtype=torch.float64)
    if terms.kl_coef and terms.kl_place == "reward":
        assert reference is not None, "the config refuses algo.kl.every where KL is in the reward"
        log_ratio = (old_logprobs - sequences.rollout_logprobs) * mask
        penalties = terms.kl_coef * kl(terms.kl_estimator, old_logprobs * mask, reference * mask, log_ratio).double()
    buffer = round(terms.overlong_buffer * terms.limit)
    return AdvantageInputs(
        rewards=sequences.rewards + overlong_penalty(mask.sum(1), terms.limit, buffer),
        penalties=penalties,
        group=sequences.group,
        mask=mask,
        random_key=sequences.random_key,
        rollout_logprobs=sequences.rollout_logprobs,
        old_logprobs=old_logprobs,
    )


def loss_weights(mask: Tokens, average: Average, group: Counts, limit: int) -> Tokens:
    """The averaging matrix `[B, T]` for the `mask` of a whole optimizer update.

    With M masked-in tokens, T_i of them in sequence i, N sequences that have any, P groups and L = `limit`:

    | average | weight of a token | known as |
    |---|---|---|
    | token_mean | 1 / M | DAPO's; verl `token-mean` |
    | sequence_mean | 1 / (N T_i) | GRPO's; verl `seq-mean-token-mean` |
    | sequence_sum | 1 / N | verl `seq-mean-token-sum` |
    | constant | 1 / (N L) | TRL `dr_grpo` |
    | constant_sum | 1 / L | verl `seq-mean-token-sum-norm` |
    | pair_mean | 1 / P on the first token of a group's first sequence, else 0 | losses of a whole group |
    """
    if not mask.any():
        raise RloptError("a batch whose mask is empty has nothing to learn from")
    tokens = mask.sum(1, keepdim=True)
    count = (tokens > 0).sum()
    if average == "token_mean":
        return mask / mask.sum()
    if average == "sequence_mean":
        return mask / tokens.clamp(min=1) / count
    if average == "sequence_sum":
        return mask / count
    if average == "constant":
        return mask / (count * limit)
    if average == "constant_sum":
        return mask / limit
    if average != "pair_mean":
        raise RloptError(f"average={average}: no such average; one of {', '.join(get_args(Average))}")
    first = torch.ones_like(group, dtype=torch.bool)
    first[1:] = group[1:] != group[:-1]
    opening = (mask.cumsum(1) == 1) * mask * first[:, None]
    return opening / first.sum()
