"""A step's data to try an objective on, and helpers that compute its gradient, for the conformance kit."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlopt.core.batches import Batch, PolicyOutputs, Sequences
from rlopt.core.shapes import Counts, Flags, Sequence, Tokens
from rlopt.core.table import Update, cut
from rlopt.objectives.core import Objective, no_loss_terms
from rlopt.objectives.credit import compute_advantages

PLAIN = no_loss_terms(8)
"""Nothing added to the objective, nothing corrected."""

WIDTH = 9
"""Tokens of a sequence in the trial: two of prompt and up to seven of response."""


@dataclass(frozen=True, eq=False)
class PaddedTable(Sequences):
    """A `core.table.SequenceTable` that is padded from the start, in float64."""

    rewards: Sequence
    group: Counts
    truncated: Flags
    random_key: Sequence
    lag: Counts

    @property
    def sampled(self) -> Sequence:
        return self.mask.sum(1)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.mask.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.mask.dtype

    def take(self, rows: list[int]) -> "PaddedTable":
        width = int(self.lengths[rows].max())
        return self.each(lambda values: cut(values, rows, width))

    def each(self, change: Callable[[Tensor], Tensor]) -> "PaddedTable":
        return PaddedTable(**{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def padded(self) -> Sequences:
        return self

    def turn_rewards(self) -> Tokens:
        """Each sequence is one turn."""
        last = (self.mask * torch.arange(self.mask.shape[1])).argmax(1, keepdim=True)
        return torch.zeros_like(self.mask).scatter(1, last, self.rewards[:, None])


@dataclass(frozen=True, eq=False)
class Trial:
    """A step's data that an objective is tried on, with the policy's log-probabilities; everything `[B, T]` in float64."""

    sequences: PaddedTable
    old_logprobs: Tensor
    reference: Tensor
    policy: Tensor

    def update(self, objective: Objective) -> Update:
        (update,) = compute_advantages(self.sequences, self.old_logprobs, self.reference, objective, PLAIN)
        return update

    def batch(self, objective: Objective) -> Batch:
        return self.update(objective).batch()

    def on_policy(self) -> "Trial":
        """The same data in which policy, old and rollout log-probabilities are equal."""
        return replace(self, old_logprobs=self.sequences.rollout_logprobs, policy=self.sequences.rollout_logprobs)


def make_trial(objective: Objective) -> Trial:
    """Groups of unequal samples with unequal lengths, some tokens not the policy's own, and a policy that has moved far enough
    to be clipped on both sides."""
    rows = objective.traits.rows
    rewards = {"groups": [1.0, 0.0, 0.0, 0.5], "answers": [1.0]}.get(rows, [1.0, 0.0])
    groups = 4
    count = groups * len(rewards)
    chance = torch.Generator().manual_seed(0)
    shape = count, WIDTH
    lengths = 4 + torch.arange(count) * 5 % 6
    lengths[0] = WIDTH
    place = torch.arange(WIDTH)
    mask = ((place >= 2) & (place < lengths[:, None])).double()
    mask[:, 4] *= torch.arange(count) % 3 != 0  # tokens of a tool

    def draw(scale: float) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64) * scale

    rollout_logprobs = -(draw(1.0).abs() + 0.3) * mask
    proximal = rollout_logprobs + draw(0.2) * mask if objective.traits.reads == "proximal" else rollout_logprobs
    sequences = PaddedTable(
        token_ids=torch.ones(shape, dtype=torch.int64),
        lengths=lengths,
        mask=mask,
        rollout_logprobs=rollout_logprobs,
        rewards=torch.tensor([r for turn in range(groups) for r in _turned(rewards, turn)], dtype=torch.float64),
        group=torch.arange(count) // len(rewards),
        truncated=torch.zeros(count, dtype=torch.bool),
        random_key=torch.rand(count, generator=chance, dtype=torch.float64),
        lag=torch.arange(count) % 4,
    )
    return Trial(sequences, proximal, rollout_logprobs + draw(0.3) * mask, (proximal + draw(0.5)).clamp(max=-1e-3) * mask)


def _turned(values: list[float], turn: int) -> list[float]:
    turn %= len(values)
    return values[turn:] + values[:turn]


def gradient_of(objective: Objective, batch: Batch, policy: Tensor, tape: list[Any] | None = None) -> Tensor:
    """`[B, T]`; with a `tape`, everything that the objective holds constant is recorded on it."""
    leaf = policy.clone().requires_grad_()
    with _Tape([] if tape is None else tape, record=True):
        per_token = objective.loss(batch, PolicyOutputs(leaf, torch.zeros_like(policy))).per_token
    loss = (per_token * batch.weights).sum()
    if not loss.requires_grad:
        return torch.zeros_like(policy)
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(policy) if gradient is None else gradient


def played_back(objective: Objective, batch: Batch, policy: Tensor, tape: list[Any]) -> Tensor:
    """The loss with every constant as it was recorded."""
    with _Tape(tape, record=False):
        per_token = objective.loss(batch, PolicyOutputs(policy.clone().requires_grad_(), torch.zeros_like(policy))).per_token
    return (per_token * batch.weights).sum().detach()


class _Tape(TorchFunctionMode):
    """Records what leaves the gradient (`detach`, `data`, `item`, anything under `no_grad`), or plays it back in that order.

    A finite difference of a loss with stop-gradients must move the differentiated parts alone. The inside of a custom
    `autograd.Function` runs without gradients too, and is not a constant: it is not replayed.
    """

    def __init__(self, tape: list[Any], record: bool) -> None:
        super().__init__()
        self._tape, self._record, self._position = tape, record, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if any(frame.f_code.co_name == "forward" and "ctx" in frame.f_locals for frame in _frames()):
            return value
        leaves = func in (Tensor.detach, Tensor.item, Tensor.tolist, Tensor.data.__get__)  # type: ignore[attr-defined]
        if not (leaves or (not torch.is_grad_enabled() and isinstance(value, Tensor))):
            return value
        if self._record:
            self._tape.append(value)
            return value
        self._position += 1
        return self._tape[self._position - 1]


def _frames() -> Iterator[FrameType]:
    """Who called, from the nearest on."""
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        yield frame


def metrics_of(objective: Objective, batch: Batch, policy: Tensor) -> Any:
    return objective.loss(batch, PolicyOutputs(policy, torch.zeros_like(policy))).metrics


def widened(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 3))


def widened_rows(rows: PaddedTable) -> PaddedTable:
    return rows.each(lambda values: widened(values) if values.dim() == 2 else values)


def float32(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
