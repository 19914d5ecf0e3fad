"""The nouns of rlopt: one frozen type per stage of a step, complete when built.

    Prompt -> Sample -> Group -> Batch -> Scores -> LossOutput

Shapes: `B` sequences, `T` tokens of the longest sequence (prompt and response, padded right), `G` samples of a prompt,
`n` response tokens. Everything `[B, T]` is aligned with the token itself: entry `t` speaks of token `t`, whose
log-probability the policy gives after reading tokens `0..t-1`. Nothing here knows how any of it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np
from torch import Tensor

from rlopt.errors import RloptError

Average = Literal["token_mean", "sequence_mean"]
"""How per-token losses become one number. `batching.weights` has the formulas."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked. `token_ids` are final: nothing downstream tokenises `text` again."""

    id: str
    token_ids: tuple[int, ...]
    text: str
    answer: str
    source: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One response of the behavior policy.

    Attributes:
        token_ids: `[n]` int32, the ids that the engine returned.
        spoken: `[n]` bool, False on tokens that the policy did not choose (tool or environment text).
        logprobs: `[n]` float32, nats, of the distribution each token was really drawn from; 0 where not spoken.
        versions: `[n]` int32, the weights that spoke each token.
        text: `token_ids` decoded once, for people and rewards.
        finish: `stop` when the policy ended it, `length` when the limit did.
        reward: the total that advantages are made of.
        parts: what the reward function reported beside the score, by name.
    """

    token_ids: np.ndarray
    spoken: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    text: str
    finish: Literal["stop", "length"]
    reward: float
    parts: Mapping[str, float]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "spoken", "logprobs", "versions")}
        if len(set(lengths.values())) != 1 or not lengths["token_ids"]:
            raise RloptError(f"a sample's arrays must have one length of at least 1: {lengths}")
        if not np.isfinite(self.logprobs).all():
            raise RloptError(f"Sample.logprobs has a value that is not finite: {self.logprobs}; was the engine broken?")
        if not np.isfinite(self.reward):
            raise RloptError(f"Sample.reward is {self.reward}: a reward function must return a finite number")

    @property
    def version(self) -> int:
        """The oldest weights that spoke a token of this sample."""
        return int(self.versions.min())


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt and its samples: the unit that is stored, aged and drawn, because credit is relative to siblings."""

    prompt: Prompt
    samples: tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """What happened then: the data of one learner step, or one micro-batch of it.

    Attributes:
        token_ids: `[B, T]` int64, prompt and response, padded right with zeros.
        lengths: `[B]` int64, tokens of each sequence without padding.
        mask: `[B, T]` float32, 1 on tokens that the policy spoke.
        behavior: `[B, T]` float32, behavior log-probabilities, 0 where `mask` is 0.
        advantages: `[B, T]` float32, 0 where `mask` is 0.
        weights: `[B, T]` float32, the average as a matrix: sums to one over all micro-batches of all ranks.
        lag: `[B]` int64, learner updates made between the sampling of a sequence and this step.
    """

    token_ids: Tensor
    lengths: Tensor
    mask: Tensor
    behavior: Tensor
    advantages: Tensor
    weights: Tensor
    lag: Tensor

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def take(self, rows: list[int]) -> "Batch":
        """The sequences `rows`, without the padding that they do not need."""
        width = int(self.lengths[rows].max())
        cut = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        return Batch(**{name: value[:, :width] if value.dim() == 2 else value for name, value in cut.items()})

    def silent(self) -> "Batch":
        """The same sequences with no voice: zero mask and weights. It keeps ranks in step and changes no gradient."""
        zero = self.mask.new_zeros(self.mask.shape)
        return replace(self, mask=zero, behavior=zero, advantages=zero, weights=zero)

    def to(self, device: object) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True, eq=False)
class Scores:
    """What the policy says now, all `[B, T]`: log-probabilities (with gradient), entropy in nats, reference's."""

    logprobs: Tensor
    entropy: Tensor
    reference: Tensor


@dataclass(frozen=True)
class Sum:
    """Adds up over micro-batches and ranks."""

    total: float

    @property
    def value(self) -> float:
        return self.total

    def merge(self, other: Self) -> "Sum":
        return Sum(self.total + other.total)


@dataclass(frozen=True)
class Mean:
    """The mean of everything counted anywhere, whatever the split."""

    total: float
    count: float

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")

    def merge(self, other: Self) -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True)
class Max:
    """The largest value seen anywhere."""

    value: float

    def merge(self, other: Self) -> "Max":
        return Max(max(self.value, other.value))


@dataclass(frozen=True)
class Ess:
    """Effective sample size as a share of the tokens: (sum r)^2 / (count * sum r^2)."""

    total: float
    squares: float
    count: float

    @property
    def value(self) -> float:
        return self.total**2 / (self.count * self.squares) if self.count else float("nan")

    def merge(self, other: Self) -> "Ess":
        return Ess(self.total + other.total, self.squares + other.squares, self.count + other.count)


Metric = Sum | Mean | Max | Ess


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What an objective says: the loss of every token `[B, T]`, before averaging, and metrics that merge exactly."""

    per_token: Tensor
    metrics: Mapping[str, Metric]
