"""A policy compiled by `torch.compile` (`learner.compile`), with a cache beside the models."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlopt.core.errors import RloptError
from rlopt.models.loading import cache_dir
from rlopt.models.policy import Policy

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_policy(policy: Policy, device: str) -> None:
    """Have everything below the head compiled, in place, when it is first called, and what is computed from logits. Parameters
    keep their names.

    Compiled once for all shapes: micro-batches have many. What was compiled is kept in `compiled` beside the tiny models, so
    that a later start of the same model takes less time.

    Raises:
        RloptError: there is no C++ compiler for code on CPUs.
    """
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and not shutil.which(compiler):
        raise RloptError(f"learner.compile=true: needs a C++ compiler, and {compiler} is not there; install it, or use false")
    if Path(os.environ.get(CACHE, "torchinductor_")).name.startswith("torchinductor_"):  # torch's own, in /tmp
        os.environ[CACHE] = str(cache_dir() / "compiled")
    policy.lm.base_model.compile(dynamic=True)
    policy.head.scores = FusedTokenScores


class FusedTokenScores(torch.autograd.Function):
    """`TokenScores` in two compiled passes, which hold no float32 tensor of the logits' shape: the logits are kept as the model
    made them, and the backward pass makes their gradient from them at once.

    Libraries that go further, and never hold logits either, give no entropy (Liger's and Apple's fused linear losses).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """`[tokens, vocabulary]` and `[tokens]` to two float32 `[tokens]`."""
        ctx.set_materialize_grads(False)
        logprobs, entropy, log_sum = _fused(_scores)(logits, targets, temperature)
        ctx.save_for_backward(logits, targets, entropy, log_sum)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, of_logprob: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        if of_logprob is None and of_entropy is None:
            return None, None, None
        logits, targets, entropy, log_sum = ctx.saved_tensors
        pulls = torch.zeros_like(entropy) if of_logprob is None else of_logprob, of_entropy
        gradient = _fused(_gradient)(logits, entropy, log_sum, ctx.temperature, *pulls)
        # A scattered write would not be fused. It replaces the value: to add 1 to a -p that is already rounded leaves little.
        chosen = targets[:, None]
        here = _gradient(logits.gather(-1, chosen), entropy, log_sum, ctx.temperature, *pulls, of_chosen=1.0)
        return gradient.scatter_(-1, chosen, here), None, None


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _scores(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and the logarithm of the sum that normalizes, `[tokens]` each."""
    scaled = logits.float() / temperature
    log_sum = scaled.logsumexp(-1)
    log_p = scaled - log_sum[:, None]
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), log_sum


def _gradient(
    logits: Tensor,
    entropy: Tensor,
    log_sum: Tensor,
    temperature: float,
    of_logprob: Tensor,
    of_entropy: Tensor | None,
    of_chosen: float = 0.0,
) -> Tensor:
    """The gradient of logits `[tokens, n]`: `of_chosen` is 1 for those of chosen tokens, and 0 for others."""
    log_p = logits.float() / temperature - log_sum[:, None]
    gradient = (of_chosen - log_p.exp()) * of_logprob[:, None]
    if of_entropy is not None:
        gradient = gradient - log_p.exp() * (log_p + entropy[:, None]) * of_entropy[:, None]
    return (gradient / temperature).to(logits.dtype)
