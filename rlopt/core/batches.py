"""The records of a step, one frozen type per stage, complete when built.

    Prompt -> Sample -> Group -> Sequences -> AdvantageInputs -> Batch -> PolicyOutputs -> LossOutput

Recorded answers join at `Sequences`: an `Example` is a prompt and its answers, best first.

Shapes: `B` sequences, `T` tokens of the longest sequence (prompt and response, padded right), `G` samples of a prompt,
`n` response tokens. Everything `[B, T]` is aligned with the token itself: entry `t` is about token `t`, whose
log-probability the policy gives after reading tokens `0..t-1`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from rlopt.core.reduce import Metric
from rlopt.core.shapes import Counts, Flags, Sequence, TokenIds, Tokens

Unit = Literal["sequence", "group"]
"""What must stay in one micro-batch."""

Average = Literal["token_mean", "sequence_mean", "sequence_sum", "constant", "constant_sum", "pair_mean"]
"""How per-token losses become one number. `objectives.credit.loss_weights` has the formulas."""


R = TypeVar("R", bound="_Rows")


class _Rows:
    """Records with a row per sequence: fields `[B]` and `[B, T]`."""

    lengths: Tensor

    def take(self: R, rows: list[int]) -> R:
        """The sequences `rows`, without the padding that they do not need."""
        width = int(self.lengths[rows].max())
        return type(self)(**self._each(lambda values: values[rows, :width] if values.dim() == 2 else values[rows]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as arrays: torch writes and reads each tensor like a file, which takes a tenth of a small model's update."""
        return _from_arrays, (type(self), self._each(Tensor.numpy))

    def _each(self, change: Callable[[Tensor], Any]) -> dict[str, Any]:
        """Every field by name, changed; one that is None stays."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: None if values is None else change(values) for name, values in named.items()}


def _from_arrays(kind: type[R], arrays: Mapping[str, Any]) -> R:
    return kind(**{name: None if values is None else torch.tensor(values) for name, values in arrays.items()})


@dataclass(frozen=True, eq=False)
class Sequences(_Rows):
    """Prompts and responses of a step, padded, before advantages.

    Attributes:
        token_ids: `[B, T]` int64, prompt and response, padded right with zeros.
        lengths: `[B]` int64, tokens of each sequence without padding.
        mask: `[B, T]` float32, 1 on tokens that the policy sampled (or is to imitate or avoid).
        rollout_logprobs: `[B, T]` float32 nats, of the policy that sampled; 0 where `mask` is 0 and in recorded rows without
            any.
        rewards: `[B]` float64, of the samples; in recorded rows 1 for the best answer and 0 for the other.
        group: `[B]` int64, which sequences are siblings: 0, 0, 1, 1, 1, ...
        truncated: `[B]` bool, ended by the length limit.
        random_key: `[B]` float64 in [0, 1), a hash of sequence and step: randomness that does not depend on order.
        lag: `[B]` int64, learner steps made between the sampling of a sequence and this step.
    """

    token_ids: TokenIds
    lengths: Counts
    mask: Tokens
    rollout_logprobs: Tokens
    rewards: Sequence
    group: Counts
    truncated: Flags
    random_key: Sequence
    lag: Counts


class _EarlierNames:
    """Names of the release before, for users' objectives."""

    old_logprobs: Tokens
    rollout_logprobs: Tokens

    @property
    def anchor(self) -> Tensor:
        """`old_logprobs`, by its earlier name."""
        return self.old_logprobs

    @property
    def behavior(self) -> Tensor:
        """`rollout_logprobs`, by its earlier name."""
        return self.rollout_logprobs


@dataclass(frozen=True, eq=False)
class AdvantageInputs(_EarlierNames):
    """What advantages are made of: a whole step's samples and their rewards.

    Attributes:
        rewards: `[B]` float64, after the punishment of overlong answers.
        penalties: `[B, T]` float64, what KL in the reward takes from each token; 0 elsewhere.
        group: `[B]` int64, siblings: 0, 0, 1, 1, 1, ...
        mask: `[B, T]`, 1 on tokens that the policy sampled.
        random_key: `[B]` float64 in [0, 1), a hash of the sequence.
        rollout_logprobs, old_logprobs: `[B, T]` nats, as in `Batch`.
    """

    rewards: Sequence
    penalties: Tokens
    group: Counts
    mask: Tokens
    random_key: Sequence
    rollout_logprobs: Tokens
    old_logprobs: Tokens

    @property
    def lottery(self) -> Tensor:
        """`random_key`, by its earlier name."""
        return self.random_key

    @property
    def returns(self) -> Tensor:
        """`[B]`: reward less the penalties of all tokens."""
        return self.rewards - self.penalties.sum(1)

    @property
    def lengths(self) -> Tensor:
        """`[B]` float64: sampled tokens."""
        return self.mask.double().sum(1)


@dataclass(frozen=True, eq=False)
class Batch(_Rows, _EarlierNames):
    """What is learned from in one optimizer update, or one micro-batch of it.

    Attributes:
        token_ids, lengths, mask, rollout_logprobs, group, lag: as in `Sequences`.
        old_logprobs: `[B, T]` float32 nats, which ratios are taken against: `rollout_logprobs`, or with
            `algo.old_logprobs=proximal` those of the policy at the start of the step.
        reference: `[B, T]` float32 nats, of the initial model; None at a step that `algo.kl.every` leaves out.
        advantages: `[B, T]` float32, 0 where `mask` is 0.
        weights: `[B, T]` float32, the average as a matrix over all micro-batches of all ranks.
    """

    token_ids: TokenIds
    lengths: Counts
    mask: Tokens
    rollout_logprobs: Tokens
    old_logprobs: Tokens
    reference: Tokens | None
    advantages: Tokens
    weights: Tokens
    group: Counts
    lag: Counts

    def dummy(self) -> "Batch":
        """The same sequences with zero mask and weights: a forward pass that keeps ranks in step and changes no gradient."""
        zero = self.mask.new_zeros(self.mask.shape)
        past = replace(self, rollout_logprobs=zero, old_logprobs=zero, reference=None if self.reference is None else zero)
        return replace(past, mask=zero, advantages=zero, weights=zero)

    def to(self, device: str) -> "Batch":
        return Batch(**self._each(lambda values: values.to(device)))


@dataclass(frozen=True, eq=False)
class PolicyOutputs:
    """Of the policy as it is, both `[B, T]` in nats: log-probabilities (with gradient) and entropy."""

    logprobs: Tokens
    entropy: Tokens


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What an objective returns: the loss of every token `[B, T]`, before averaging, and metrics that merge exactly."""

    per_token: Tokens
    metrics: Mapping[str, Metric]
