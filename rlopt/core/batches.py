"""The records of a step, one frozen type per stage, complete when built.

    Prompt -> Sample -> Group -> SequenceTable -> AdvantageInputs -> Update -> Batch -> PolicyOutputs -> LossOutput

The first six stay with the driver and are not padded (`core.table`); a rank pads what it learns from (`Batch`) or scores
(`Sequences`). Recorded answers join at `SequenceTable`: an `Example` is a prompt and its answers, best first.

Shapes: `B` sequences, `T` tokens of the longest sequence (prompt and response, padded right), `G` samples of a prompt,
`n` response tokens. Everything `[B, T]` is aligned with the token itself: entry `t` is about token `t`, whose
log-probability the policy gives after reading tokens `0..t-1`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from rlopt.core.reduce import Metric
from rlopt.core.shapes import Counts, Sequence, TokenIds, Tokens

Unit = Literal["sequence", "group"]
"""What must stay in one micro-batch."""

Average = Literal["token_mean", "sequence_mean", "sequence_sum", "constant", "constant_sum", "pair_mean"]
"""How per-token losses become one number. `objectives.credit.loss_weights` has the formulas."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts and responses, padded, to be scored.

    Attributes:
        token_ids: `[B, T]` int64, prompt and response, padded right with zeros.
        lengths: `[B]` int64, tokens of each sequence without padding.
        mask: `[B, T]` float32, 1 on tokens that the policy sampled (or is to imitate or avoid).
        rollout_logprobs: `[B, T]` float32 nats, of the policy that sampled; 0 where `mask` is 0 and in recorded rows without
            any.
    """

    token_ids: TokenIds
    lengths: Counts
    mask: Tokens
    rollout_logprobs: Tokens

    def __len__(self) -> int:
        return len(self.lengths)


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
class TokenInputs:
    """What advantages can be made of, token by token, all `[B, T]`; the attributes of `AdvantageInputs` by these names."""

    penalties: Tokens
    mask: Tokens
    rollout_logprobs: Tokens
    old_logprobs: Tokens
    turn_rewards: Tokens


@dataclass(frozen=True, eq=False)
class AdvantageInputs(_EarlierNames):
    """What advantages are made of: a whole step's samples and their rewards.

    What has a number for each token is padded and computed when an objective first reads it, as most read none of it.

    Attributes:
        rewards: `[B]` float64, after the punishment of overlong answers.
        returns: `[B]` float64, the reward less the penalties of all tokens.
        group: `[B]` int64, siblings: 0, 0, 1, 1, 1, ...
        lengths: `[B]` float64, sampled tokens.
        shape: `B` and `T`.
        draw, pad: make `random_key` and the tokens' values.
    """

    rewards: Sequence
    returns: Sequence
    group: Counts
    lengths: Sequence
    shape: tuple[int, int]
    draw: Callable[[], Sequence]
    pad: Callable[[], TokenInputs]

    @cached_property
    def random_key(self) -> Tensor:
        """`[B]` float64 in [0, 1), a hash of the sequence."""
        return self.draw()

    @property
    def lottery(self) -> Tensor:
        """`random_key`, by its earlier name."""
        return self.random_key

    @cached_property
    def _tokens(self) -> TokenInputs:
        return self.pad()

    @property
    def penalties(self) -> Tensor:
        """`[B, T]` float64, what KL in the reward takes from each token; 0 elsewhere."""
        return self._tokens.penalties

    @property
    def mask(self) -> Tensor:
        """`[B, T]`, 1 on tokens that the policy sampled."""
        return self._tokens.mask

    @property
    def turn_rewards(self) -> Tensor:
        """`[B, T]` float64, what each turn of an episode was rewarded with, at its last token; 0 elsewhere."""
        return self._tokens.turn_rewards

    @property
    def rollout_logprobs(self) -> Tensor:  # type: ignore[override]
        """`[B, T]` nats, as in `Batch`."""
        return self._tokens.rollout_logprobs

    @property
    def old_logprobs(self) -> Tensor:  # type: ignore[override]
        """`[B, T]` nats, as in `Batch`."""
        return self._tokens.old_logprobs


@dataclass(frozen=True, eq=False)
class Batch(_EarlierNames):
    """A micro-batch, as an objective has it.

    Attributes:
        token_ids, lengths, mask, rollout_logprobs: as in `Sequences`.
        old_logprobs: `[B, T]` float32 nats, which ratios are taken against: `rollout_logprobs`, or with
            `algo.old_logprobs=proximal` those of the policy at the start of the step.
        reference: `[B, T]` float32 nats, of the initial model; None at a step that `algo.kl.every` leaves out.
        advantages: `[B, T]` float32, 0 where `mask` is 0.
        weights: `[B, T]` float32, the average as a matrix over all micro-batches of all ranks.
        group: `[B]` int64, which sequences are siblings: 0, 0, 1, 1, 1, ...
        lag: `[B]` int64, learner steps made between the sampling of a sequence and this step.
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

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: str) -> "Batch":
        named: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: values.to(device) for name, values in named.items() if values is not None})


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
