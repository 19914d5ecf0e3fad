"""From groups and examples to tensors: padded `Sequences`, credited `Batch`es with averaging weights, and their splits.

The weights of a batch belong to its whole optimizer update, so a learner sums `per_token * weights` over whatever part it
holds and the gradient is the same for every split over ranks and micro-batches.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from rlopt.errors import RloptError
from rlopt.objectives.advantages import overlong_penalty
from rlopt.objectives.core import Objective, Terms
from rlopt.objectives.divergence import kl
from rlopt.types import Average, Batch, Example, Group, Outcomes, Prompt, Sample, Sequences


def pad(groups: list[Group], step: int) -> Sequences:
    """All samples of all groups of learner step `step` (1-based), in order.

    Raises:
        RloptError: no sample is left, or one is newer than the learner.
    """
    rows = [
        (number, group.prompt, sample)
        for number, group in enumerate(g for g in groups if g.samples)
        for sample in group.samples
    ]
    if not rows:
        why = next((fault.why for group in groups for fault in group.faults), "the reward returned None for all of them")
        raise RloptError(f"step {step}: no sample is left to learn from; {why}")
    sequences = _pad(((number, prompt.token_ids, sample.token_ids) for number, prompt, sample in rows), step)
    mask, behavior = sequences.mask, sequences.behavior
    for row, (_, prompt, sample) in enumerate(rows):
        start, end = len(prompt.token_ids), int(sequences.lengths[row])
        mask[row, start:end] = torch.tensor(sample.spoken)
        behavior[row, start:end] = torch.tensor(sample.logprobs) * mask[row, start:end]
    lag = torch.tensor([step - 1 - sample.version for _, _, sample in rows])
    if lag.min() < 0:
        raise RloptError(f"step {step}: a sample of version {step - 1 - int(lag.min())} is newer than the learner")
    return replace(
        sequences,
        rewards=torch.tensor([sample.reward for _, _, sample in rows], dtype=torch.float64),
        truncated=torch.tensor([sample.finish == "length" for _, _, sample in rows]),
        lag=lag,
    )


def pad_examples(examples: list[Example]) -> Sequences:
    """The answers of all examples, in order: no behavior log-probabilities, reward 1 for the first of a row, else 0."""
    rows = [(number, e.prompt.token_ids, answer) for number, e in enumerate(examples) for answer in e.answers]
    best = [float(place == 0) for e in examples for place, _ in enumerate(e.answers)]
    return replace(_pad(rows), rewards=torch.tensor(best, dtype=torch.float64))


def pad_samples(rows: list[tuple[Prompt, Sample]]) -> Sequences:
    """Prompts with one sample each, to be scored."""
    return pad([Group(prompt, (sample,)) for prompt, sample in rows], step=max(sample.version for _, sample in rows) + 1)


def _pad(rows: Iterable[tuple[int, Iterable[int], Iterable[int]]], step: int = 0) -> Sequences:
    """(group, prompt ids, response ids) of every row, padded; the mask is 1 on all of the response, the rest is 0."""
    both = [(group, [*prompt], [*response]) for group, prompt, response in rows]
    lengths = torch.tensor([len(prompt) + len(response) for _, prompt, response in both])
    shape = len(both), int(lengths.max())
    token_ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    for row, (_, prompt, response) in enumerate(both):
        token_ids[row, : int(lengths[row])] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : int(lengths[row])] = 1
    return Sequences(
        token_ids=token_ids,
        lengths=lengths,
        mask=mask,
        behavior=torch.zeros(shape),
        rewards=torch.zeros(len(both), dtype=torch.float64),
        group=torch.tensor([group for group, _, _ in both]),
        truncated=torch.zeros(len(both), dtype=torch.bool),
        lottery=_lottery(both, step),
        lag=torch.zeros_like(lengths),
    )


def _lottery(rows: list[tuple[int, list[int], list[int]]], step: int) -> Tensor:
    """`[B]` in [0, 1): a hash of each sequence and the step; copies within a group are told apart by counting them."""
    seen: dict[tuple[int, bytes], int] = {}
    drawn = []
    for group, prompt, response in rows:
        key = np.array([step, *prompt, -1, *response], np.int64).tobytes()
        copy = seen[group, key] = seen.get((group, key), -1) + 1
        drawn.append(int.from_bytes(hashlib.blake2b(key + bytes([copy % 256]), digest_size=6).digest()) / 2**48)
    return torch.tensor(drawn, dtype=torch.float64)


def credit(
    sequences: Sequences, anchor: Tensor, reference: Tensor, objective: Objective, terms: Terms, updates: int = 1
) -> list[Batch]:
    """What the optimizer updates of one step learn from: `updates` batches of whole groups, each with weights of its own.

    Credit is given over the whole step, before it is cut. A batch that the overlong filter leaves without a token is left
    out.

    Args:
        anchor, reference: `[B, T]` log-probabilities as in `Batch`.
    """
    outcomes = judge(sequences, anchor, reference, terms)
    advantages = objective.advantages(outcomes).to(sequences.mask.dtype)
    advantages = advantages if advantages.dim() == 2 else advantages[:, None]
    mask = sequences.mask
    if terms.overlong_filter:
        mask = mask * ~sequences.truncated[:, None]
    whole = Batch(
        token_ids=sequences.token_ids,
        lengths=sequences.lengths,
        mask=mask,
        behavior=sequences.behavior * mask,
        anchor=anchor * mask,
        reference=reference * mask,
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
            batches.append(replace(batch, weights=weights(batch.mask, objective.average, batch.group, terms.limit)))
    if not batches:
        raise RloptError(
            "every sample of the step was truncated and algo.overlong.filter leaves those out; raise rollout.max_new_tokens"
        )
    return batches


def judge(sequences: Sequences, anchor: Tensor, reference: Tensor, terms: Terms) -> Outcomes:
    """How the samples of a step ended, with the overlong punishment and the KL that is taken from the reward."""
    mask = sequences.mask
    penalties = torch.zeros_like(mask, dtype=torch.float64)
    if terms.kl_coef and terms.kl_place == "reward":
        log_ratio = (anchor - sequences.behavior) * mask
        penalties = terms.kl_coef * kl(terms.kl_estimator, anchor * mask, reference * mask, log_ratio).double()
    buffer = round(terms.overlong_buffer * terms.limit)
    return Outcomes(
        rewards=sequences.rewards + overlong_penalty(mask.sum(1), terms.limit, buffer),
        penalties=penalties,
        group=sequences.group,
        mask=mask,
        lottery=sequences.lottery,
        behavior=sequences.behavior,
        anchor=anchor,
    )


def weights(mask: Tensor, average: Average, group: Tensor, limit: int) -> Tensor:
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


def plan(lengths: Tensor, units: Tensor, ranks: int, token_budget: int) -> list[list[list[int]]]:
    """Which sequences make which micro-batch of which rank: `[rank][micro-batch]` rows, the same number for all ranks.

    Sequences of similar length go together, at most `token_budget` tokens with padding in one micro-batch; those of one
    unit (`units` `[B]`) stay together. Collectives inside a forward pass need ranks in step, so micro-batches are halved
    until their number divides; when even single units do not, or are fewer than ranks, empty lists of rows fill the gap.

    Raises:
        RloptError: one unit alone is over the budget.
    """
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(row)
    longest = {unit: int(lengths[rows].max()) for unit, rows in members.items()}
    cost = max(longest[unit] * len(rows) for unit, rows in members.items())
    if cost > token_budget:
        raise RloptError(
            f"learner.token_budget={token_budget}: what must stay together has {cost} tokens; raise it to {cost} at least"
        )
    pieces: list[list[int]] = [[]]  # of units
    rows_in_piece = 0
    for unit in sorted(members, key=lambda unit: longest[unit]):  # ascending, so the new unit is the widest of its piece
        if (rows_in_piece + len(members[unit])) * longest[unit] > token_budget:
            pieces.append([])
            rows_in_piece = 0
        pieces[-1].append(unit)
        rows_in_piece += len(members[unit])
    while len(pieces) % ranks:
        widest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        piece = pieces.pop(widest)
        if len(piece) == 1:
            pieces.append(piece)
            break
        pieces += [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
    micro_batches = [[row for unit in piece for row in members[unit]] for piece in pieces]
    micro_batches += [[]] * (-len(micro_batches) % ranks)
    return [micro_batches[rank::ranks] for rank in range(ranks)]


def split(batch: Batch, together: bool, ranks: int, token_budget: int) -> list[list[Batch]]:
    """The micro-batches of each rank, as `plan` lays them out; a silent copy of another fills a gap.

    `together` keeps siblings in one micro-batch.
    """
    units = batch.group if together else torch.arange(len(batch))
    layout = plan(batch.lengths, units, ranks, token_budget)
    spare = next(rows for share in layout for rows in share if rows)
    return [[batch.take(rows) if rows else batch.take(spare).silent() for rows in share] for share in layout]
