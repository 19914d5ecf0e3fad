"""Small things that tests are made of."""

import numpy as np

from rlopt.types import Group, Prompt, Sample


def prompt(name: str = "p", length: int = 3) -> Prompt:
    return Prompt(name, tuple(range(5, 5 + length)), "1+1=", "2", "test")


def sample(length: int = 2, reward: float = 1.0, version: int = 0, finish: str = "stop") -> Sample:
    return Sample(
        token_ids=np.arange(20, 20 + length, dtype=np.int32),
        spoken=np.ones(length, bool),
        logprobs=np.full(length, -0.5, np.float32),
        versions=np.full(length, version, np.int32),
        text="Answer: 2",
        finish=finish,  # type: ignore[arg-type]
        reward=reward,
        parts={},
    )


def group(name: str = "p", rewards: tuple[float, ...] = (1.0, 0.0), version: int = 0) -> Group:
    return Group(prompt(name), tuple(sample(2 + i, reward, version) for i, reward in enumerate(rewards)))
