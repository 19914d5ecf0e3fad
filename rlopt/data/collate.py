"""From groups and examples to padded tensors (`Sequences`).

Samples are padded on the right; every field `[B, T]` is aligned with the token itself.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from rlopt.core.batches import Sequences
from rlopt.core.errors import RloptError
from rlopt.core.samples import Example, Group, Prompt, Sample


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
    mask, rollout_logprobs = sequences.mask, sequences.rollout_logprobs
    for row, (_, prompt, sample) in enumerate(rows):
        start, end = len(prompt.token_ids), int(sequences.lengths[row])
        mask[row, start:end] = torch.tensor(sample.action_mask)
        rollout_logprobs[row, start:end] = torch.tensor(sample.logprobs) * mask[row, start:end]
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
    """The answers of all examples, in order: no rollout log-probabilities, reward 1 for the first of a row, else 0."""
    rows = [(number, e.prompt.token_ids, answer) for number, e in enumerate(examples) for answer in e.answers]
    best = [float(place == 0) for e in examples for place, _ in enumerate(e.answers)]
    return replace(_pad(rows), rewards=torch.tensor(best, dtype=torch.float64))


def pad_samples(rows: list[tuple[Prompt, Sample]]) -> Sequences:
    """Prompts with one sample each, to be scored."""
    return pad([Group(prompt, (sample,)) for prompt, sample in rows], step=max(sample.version for _, sample in rows) + 1)


def _pad(rows: Iterable[tuple[int, Iterable[SupportsIndex], Iterable[SupportsIndex]]], step: int = 0) -> Sequences:
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
        rollout_logprobs=torch.zeros(shape),
        rewards=torch.zeros(len(both), dtype=torch.float64),
        group=torch.tensor([group for group, _, _ in both]),
        truncated=torch.zeros(len(both), dtype=torch.bool),
        random_key=_random_keys(both, step),
        lag=torch.zeros_like(lengths),
    )


def _random_keys(rows: list[tuple[int, list[SupportsIndex], list[SupportsIndex]]], step: int) -> Tensor:
    """`[B]` in [0, 1): a hash of each sequence and the step; copies within a group are numbered."""
    seen: dict[tuple[int, bytes], int] = {}
    drawn = []
    for group, prompt, response in rows:
        key = np.array([step, *prompt, -1, *response], np.int64).tobytes()
        copy = seen[group, key] = seen.get((group, key), -1) + 1
        drawn.append(int.from_bytes(hashlib.blake2b(key + bytes([copy % 256]), digest_size=6).digest()) / 2**48)
    return torch.tensor(drawn, dtype=torch.float64)
