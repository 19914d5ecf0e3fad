"""From groups to tensors: one `Batch` for the step, its averaging weights, and its split over ranks and micro-batches.

The weights of a batch sum to one over the whole step, so a learner sums `per_token * weights` over whatever part it
holds and the gradient is the same for every split.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rlopt.errors import RloptError
from rlopt.objectives.core import Objective
from rlopt.types import Average, Batch, Group, Prompt, Sample


def make_batch(groups: list[Group], objective: Objective, step: int) -> Batch:
    """The batch of learner step `step` (1-based): all samples of all groups, in order. Shapes as `Batch` says."""
    rows = [(group.prompt, sample) for group in groups for sample in group.samples]
    if not rows:
        raise RloptError(f"step {step}: no sample is left to learn from; did the reward return None for all of them?")
    batch = pad(rows)
    rewards = [torch.tensor([sample.reward for sample in group.samples]) for group in groups if group.samples]
    credit = torch.cat([objective.advantages(r) for r in rewards]).float()
    lag = torch.tensor([step - 1 - sample.version for _, sample in rows])
    if lag.min() < 0:
        raise RloptError(f"step {step}: a sample of version {step - 1 - int(lag.min())} is newer than the learner")
    averaging = weights(batch.mask, objective.average)
    return replace(batch, advantages=credit[:, None] * batch.mask, weights=averaging, lag=lag)


def pad(rows: list[tuple[Prompt, Sample]]) -> Batch:
    """Prompts with their samples as a batch to be scored: no advantages, weights or lag yet (all 0)."""
    lengths = torch.tensor([len(prompt.token_ids) + len(sample.token_ids) for prompt, sample in rows])
    shape = len(rows), int(lengths.max())
    token_ids = torch.zeros(shape, dtype=torch.int64)
    mask, behavior = torch.zeros(shape), torch.zeros(shape)
    for row, (prompt, sample) in enumerate(rows):
        start, end = len(prompt.token_ids), int(lengths[row])
        token_ids[row, :start] = torch.tensor(prompt.token_ids)
        token_ids[row, start:end] = torch.tensor(sample.token_ids)
        mask[row, start:end] = torch.tensor(sample.spoken)
        behavior[row, start:end] = torch.tensor(sample.logprobs) * mask[row, start:end]
    return Batch(token_ids, lengths, mask, behavior, torch.zeros(shape), torch.zeros(shape), torch.zeros_like(lengths))


def weights(mask: Tensor, average: Average) -> Tensor:
    """The averaging matrix `[B, T]` for a whole step's `mask`; it sums to one.

    `token_mean`: 1 / M on each of the M masked-in tokens. `sequence_mean`: 1 / (N T_i), where N counts the sequences
    with at least one such token and T_i the tokens of sequence i.
    """
    if not mask.any():
        raise RloptError("a batch whose mask is empty has nothing to learn from")
    if average == "token_mean":
        return mask / mask.sum()
    tokens = mask.sum(1, keepdim=True)
    return mask / tokens.clamp(min=1) / (tokens > 0).sum()


def split(batch: Batch, ranks: int, token_budget: int) -> list[list[Batch]]:
    """Micro-batches of at most `token_budget` tokens (padding included) for each rank, the same number for all.

    Sequences of similar length go together. Collectives inside a forward pass need ranks in step, so pieces are halved
    until their number divides; when even single sequences do not, a silent copy of one fills the gap.

    Raises:
        RloptError: one sequence alone is over the budget, or there are fewer sequences than ranks.
    """
    if len(batch) < ranks:
        raise RloptError(f"{len(batch)} samples cannot be split over learner.workers={ranks}; use at most {len(batch)}")
    longest = int(batch.lengths.max())
    if longest > token_budget:
        raise RloptError(
            f"learner.token_budget={token_budget}: a sequence has {longest} tokens; raise it to {longest} at least"
        )
    order = torch.argsort(batch.lengths, stable=True).tolist()
    pieces: list[list[int]] = [[]]
    for row in order:  # ascending, so the new row is the widest of its piece
        if (len(pieces[-1]) + 1) * int(batch.lengths[row]) > token_budget:
            pieces.append([])
        pieces[-1].append(row)
    while len(pieces) % ranks:
        widest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        rows = pieces.pop(widest)
        if len(rows) == 1:
            pieces.append(rows)
            break
        pieces += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    micro_batches = [batch.take(rows) for rows in pieces]
    micro_batches += [micro_batches[0].silent()] * (-len(micro_batches) % ranks)
    return [micro_batches[rank::ranks] for rank in range(ranks)]
