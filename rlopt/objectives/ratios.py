"""Importance ratios and the masks that clipping makes of them. Pure functions of `[B, T]` tensors."""

from torch import Tensor

from rlopt.types import Batch, Scores


def log_ratio(batch: Batch, scores: Scores) -> Tensor:
    """`log(policy / behavior)` per token, 0 where the mask is 0; carries the policy's gradient."""
    return (scores.logprobs - batch.behavior) * batch.mask


def one_side(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """1 where the ratio has not yet passed the bound that the advantage pushes it to, else 0; bounds inclusive.

    `(A >= 0 and r <= 1 + high) or (A <= 0 and r >= 1 - low)`: the tokens on which PPO-clip's gradient is not zero.
    """
    keep = ((advantages >= 0) & (ratio <= 1 + high)) | ((advantages <= 0) & (ratio >= 1 - low))
    return keep.to(ratio.dtype)
