"""The sequences of a step without padding, as the driver has them: `SequenceTable` before advantages, `Update` after.

What concerns a sequence as a whole is a column. Tokens are never copied by the driver but to send them: they stay in the arrays
in which they arrived, and a rank pads those of its own micro-batches.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlopt.core.batches import Batch, Sequences
from rlopt.core.samples import Turn
from rlopt.core.shapes import Counts, Flags, Sequence, SequenceOrTokens, Tokens


@runtime_checkable
class Table(Protocol):
    """A `SequenceTable`, or what an objective is tried on."""

    @property
    def rewards(self) -> Sequence: ...
    @property
    def group(self) -> Counts: ...
    @property
    def truncated(self) -> Flags: ...
    @property
    def lag(self) -> Counts: ...
    @property
    def lengths(self) -> Counts: ...
    @property
    def sampled(self) -> Sequence: ...
    @property
    def random_key(self) -> Sequence: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __len__(self) -> int: ...
    def take(self, rows: list[int]) -> "Table": ...
    def padded(self) -> Sequences: ...
    def turn_rewards(self) -> Tokens: ...


ARRAYS = ("prompts", "responses", "action_masks", "rollout_logprobs")


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """Prompts and responses of a step, one row each.

    Attributes:
        prompts, responses: token ids of each row, int32.
        action_masks: of each response, bool, False on tokens that the policy did not sample.
        rollout_logprobs: of each response, float32 nats, of the policy that sampled.
        rewards: `[B]` float64, of the samples; in recorded rows 1 for the best answer and 0 for the other.
        group: `[B]` int64, which sequences are siblings: 0, 0, 1, 1, 1, ...
        truncated: `[B]` bool, ended by the length limit.
        lag: `[B]` int64, learner steps made between the sampling of a sequence and this step.
        step: the learner step, on which `random_key` depends.
        turns: of each response that is an episode, in order; empty where none is. Ranks do not get them.
    """

    prompts: list[NDArray[np.int32]]
    responses: list[NDArray[np.int32]]
    action_masks: list[NDArray[np.bool_]]
    rollout_logprobs: list[NDArray[np.float32]]
    rewards: Sequence
    group: Counts
    truncated: Flags
    lag: Counts
    step: int
    turns: tuple[tuple[Turn, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.responses)

    def turn_rewards(self) -> Tokens:
        """`[B, T]` float64: the reward of each turn at its last token. A response that is not an episode is one turn."""
        found = torch.zeros(self.shape, dtype=torch.float64)
        for row, (prompt, response) in enumerate(zip(self.prompts, self.responses, strict=True)):
            for turn in self.turns[row] if self.turns else ():
                found[row, len(prompt) + turn.end - 1] += turn.reward
            if not self.turns or not self.turns[row]:
                found[row, len(prompt) + len(response) - 1] = self.rewards[row]
        return found

    @cached_property
    def lengths(self) -> Counts:
        """`[B]`: tokens of each prompt and response."""
        return _sizes(self.prompts) + _sizes(self.responses)

    @cached_property
    def sampled(self) -> Sequence:
        """`[B]` float32: tokens that the policy sampled."""
        return torch.tensor([np.count_nonzero(mask) for mask in self.action_masks], dtype=torch.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """`B` and `T`, as they are when padded."""
        return len(self), int(self.lengths.max())

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed for each token."""
        return torch.float32

    @cached_property
    def random_key(self) -> Sequence:
        """`[B]` in [0, 1): a hash of each sequence and the step; copies within a group are numbered."""
        seen: dict[tuple[int, bytes], int] = {}
        drawn = []
        for group, prompt, response in zip(self.group.tolist(), self.prompts, self.responses, strict=True):
            key = np.concatenate([[self.step], prompt, [-1], response], dtype=np.int64)
            found = hashlib.blake2b(key.tobytes(), digest_size=6)
            copy = seen[group, found.digest()] = seen.get((group, found.digest()), -1) + 1
            found.update(bytes([copy % 256]))
            drawn.append(int.from_bytes(found.digest()) / 2**48)
        return torch.tensor(drawn, dtype=torch.float64)

    def take(self, rows: list[int]) -> "SequenceTable":
        """The sequences `rows`."""
        arrays: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in ARRAYS}
        turns = tuple(self.turns[row] for row in rows) if self.turns else ()
        return replace(self, **arrays, turns=turns, **{name: column[rows] for name, column in self._columns().items()})

    def padded(self) -> Sequences:
        """The same with padded tensors."""
        token_ids, mask, logprobs = (np.zeros(self.shape, kind) for kind in (np.int64, np.float32, np.float32))
        for row, (prompt, response, spoken, said) in enumerate(zip(*(getattr(self, name) for name in ARRAYS), strict=True)):
            start, end = len(prompt), len(prompt) + len(response)
            token_ids[row, :start] = prompt
            token_ids[row, start:end] = response
            mask[row, start:end] = spoken
            logprobs[row, start:end] = said
        tensors = {"token_ids": token_ids, "mask": mask, "rollout_logprobs": logprobs * mask}
        return Sequences(lengths=self.lengths, **{name: torch.from_numpy(values) for name, values in tensors.items()})

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rewards", "group", "truncated", "lag")}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as few large arrays: many small ones take longer than their bytes."""
        counts = [_sizes(arrays).numpy() for arrays in (self.prompts, self.responses)]
        flat = [np.concatenate(getattr(self, name)) for name in ARRAYS]
        return _unpacked, (counts, flat, {name: column.numpy() for name, column in self._columns().items()}, self.step)


def _sizes(arrays: list[Any]) -> Tensor:
    return torch.tensor([len(array) for array in arrays], dtype=torch.int64)


def _unpacked(
    counts: list[NDArray[np.int64]], flat: list[NDArray[Any]], columns: Mapping[str, NDArray[Any]], step: int
) -> SequenceTable:
    cuts = [np.cumsum(count)[:-1] for count in counts]
    values: dict[str, Any] = {name: torch.tensor(column) for name, column in columns.items()}
    for name, array in zip(ARRAYS, flat, strict=True):
        values[name] = np.split(array, cuts[name != "prompts"])
    return SequenceTable(step=step, **values)


@dataclass(frozen=True, eq=False)
class Update:
    """What one optimizer update learns from, or a micro-batch of it; a rank makes a `Batch` of it.

    Attributes:
        sequences: what is learned from, `B` of them; `T` is the length of the longest, as in `Batch`.
        advantages: `[B]` float32, or `[B, T]` where tokens of a sequence differ.
        weights: `[B]` float32, of every token of a sequence in the average over the whole update.
        opening: the weight is of a sequence's first sampled token alone.
        learned: `[B]` bool, False where a sequence is judged with its siblings but not learned from.
        old_logprobs: `[B, T]` as in `Batch`; None: those of the policy that sampled.
        reference: `[B, T]` as in `Batch`; None: KL is not measured.
    """

    sequences: Table
    advantages: SequenceOrTokens
    weights: Sequence
    opening: bool
    learned: Flags
    old_logprobs: Tokens | None
    reference: Tokens | None

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> Counts:
        return self.sequences.lengths

    @property
    def group(self) -> Counts:
        return self.sequences.group

    @property
    def tokens(self) -> int:
        """How many are learned from."""
        return int((self.sequences.sampled * self.learned).sum())

    def take(self, rows: list[int]) -> "Update":
        """The sequences `rows`."""
        width = int(self.lengths[rows].max())
        changed = self._each(lambda values: cut(values, rows, width))
        return replace(self, sequences=self.sequences.take(rows), **changed)

    def dummy(self) -> "Update":
        """The same sequences with zero mask and weights: a forward pass that keeps ranks in step and changes no gradient."""
        return replace(self, learned=torch.zeros_like(self.learned), weights=torch.zeros_like(self.weights))

    def batch(self) -> Batch:
        """Padded, with advantages and weights for every token."""
        rows = self.sequences.padded()
        mask = rows.mask * self.learned[:, None]
        rollout_logprobs = rows.rollout_logprobs * mask
        advantages = self.advantages if self.advantages.dim() == 2 else self.advantages[:, None]
        return Batch(
            token_ids=rows.token_ids,
            lengths=rows.lengths,
            mask=mask,
            rollout_logprobs=rollout_logprobs,
            old_logprobs=rollout_logprobs if self.old_logprobs is None else self.old_logprobs * mask,
            reference=None if self.reference is None else self.reference * mask,
            advantages=advantages * mask,
            weights=token_weights(mask, self.weights, self.opening),
            group=self.sequences.group,
            lag=self.sequences.lag,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as arrays, as `Batch` is."""
        return _update, (self.sequences, self.opening, self._each(Tensor.numpy))

    def _each(self, change: Callable[[Tensor], Any]) -> dict[str, Any]:
        """Every tensor by name, changed."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: change(value) for name, value in named.items() if isinstance(value, Tensor)}


def _update(sequences: Table, opening: bool, arrays: Mapping[str, NDArray[Any]]) -> Update:
    tensors = {"old_logprobs": None, "reference": None} | {name: torch.tensor(values) for name, values in arrays.items()}
    return Update(sequences, opening=opening, **tensors)  # type: ignore[arg-type]


def cut(values: Tensor, rows: list[int], width: int) -> Tensor:
    """`rows` of `[B]` or `[B, T]`, without the padding beyond `width`."""
    return values[rows, :width] if values.dim() == 2 else values[rows]


def token_weights(mask: Tokens, weights: Sequence, opening: bool) -> Tokens:
    """`[B, T]`: the weight of each sequence on all tokens of its `mask`, or on the first of them alone."""
    return ((mask.cumsum(1) == 1) * mask if opening else mask) * weights[:, None]
