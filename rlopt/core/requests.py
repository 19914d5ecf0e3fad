"""Requests to an engine: a prompt and how to sample it, or a text to continue; and what comes back."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlopt.core.samples import Prompt


@dataclass(frozen=True)
class SamplingSpec:
    """How many responses to a prompt are drawn, and how. Temperature 0 takes the likeliest token."""

    count: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class SampleRequest:
    """A prompt to be sampled for a batch.

    Attributes:
        sampling: how responses are drawn; None: as samples to learn from are.
        draw: what distinguishes this draw of the prompt from others: how often the data had been gone through before, or for
            a spare its place. It is part of every sample's seed.
        spares: prompts to be taken one after another while the samples show no signal.
    """

    prompt: Prompt
    draw: str
    spares: tuple["SampleRequest", ...] = ()
    sampling: SamplingSpec | None = None


def sample_seed(run_seed: int, prompt_id: str, draw: str, index: int) -> int:
    """The seed of one sample: 63 bits of a hash, so that scheduling cannot change what is drawn."""
    key = f"{run_seed}/{prompt_id}/{draw}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Continuation:
    """Where answers continue: the token ids of a prompt, and of the part of an answer that is given.

    `id` names the seeds of the answers: what is sampled depends on it and on nothing else.
    """

    id: str
    prompt: tuple[int, ...]
    begun: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A whole answer, the given part included: token ids (with the end token), their text, and the finish reason."""

    token_ids: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class EngineLogprobs:
    """An engine's log-probabilities `[n - 1]` (nats) of the tokens of a text after the first, and its version."""

    logprobs: np.ndarray
    version: int
