"""Importance ratios, the masks that clipping makes of them, and PPO's surrogate. Pure functions of `[B, T]` tensors."""

import torch
from torch import Tensor

from rlopt.core.batches import Batch, PolicyOutputs
from rlopt.core.errors import need
from rlopt.core.shapes import Mask, Tokens


def check_clip(low: float, high: float) -> None:
    """Refuse clips that are not distances from a ratio of 1."""
    need(low >= 0, "algo.clip_low", low, "is how far below 1 a ratio may fall: 0 or more")
    need(high >= 0, "algo.clip_high", high, "is how far above 1 a ratio may rise: 0 or more")


def log_ratio(batch: Batch, scores: PolicyOutputs) -> Tokens:
    """`log(policy / old)` per token, 0 where the mask is 0; carries the policy's gradient."""
    return (scores.logprobs - batch.old_logprobs) * batch.mask


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """`[B, 1]`: the sum over a sequence's tokens. Of log-ratios: the sequence's log-ratio."""
    return (values * mask).sum(1, keepdim=True)


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """`[B, 1]`: the mean over a sequence's tokens, 0 for one without any. Of log-ratios: the log of the geometric mean."""
    return sequence_sum(values, mask) / mask.sum(1, keepdim=True).clamp(min=1)


def sequence_ratio(batch: Batch, scores: PolicyOutputs) -> Tokens:
    """`[B, T]`: the geometric mean of a sequence's ratios, on all of its tokens; carries the policy's gradient."""
    return sequence_mean(log_ratio(batch, scores), batch.mask).exp().expand_as(batch.mask)


def one_side(ratio: Tokens, advantages: Tokens, low: float, high: float) -> Mask:
    """True where the ratio has not yet passed the bound that the advantage pushes it to; bounds inclusive.

    `(A >= 0 and r <= 1 + high) or (A <= 0 and r >= 1 - low)`: the tokens on which PPO-clip's gradient is not zero.
    """
    past = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    return ~past  # written so that a NaN ratio is kept, and shows in the loss


def two_side(ratio: Tokens, low: float, high: float) -> Mask:
    """True where `1 - low <= r <= 1 + high`, whatever the advantage."""
    return (ratio >= 1 - low) & (ratio <= 1 + high)


def ring(ratio: Tensor, advantages: Tensor, low: float, high: float, outer_low: float, outer_high: float) -> Tensor:
    """`two_side`, and again far out on the side to which the advantage does not push: `r <= 1 - outer_low` with `A >= 0`,
    `r >= 1 + outer_high` with `A <= 0`."""
    far = ((advantages >= 0) & (ratio <= 1 - outer_low)) | ((advantages <= 0) & (ratio >= 1 + outer_high))
    return two_side(ratio, low, high) | far


def ppo_clip(ratio: Tokens, advantages: Tokens, low: float, high: float) -> Tokens:
    """`max(-A r, -A clamp(r, 1 - low, 1 + high))`, differentiated through `r` (arXiv:1707.06347)."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
