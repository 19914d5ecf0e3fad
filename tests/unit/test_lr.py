"""The learning rate over a run."""

from dataclasses import replace

import pytest

from rlopt.config.compose import default_section, read
from rlopt.config.learners import LearnerConfig
from rlopt.learner.lr_schedule import lr_factor

LEARNER = read(LearnerConfig, default_section("learner"), "learner.")


def factors(schedule: str, warmup: int, steps: int) -> list[float]:
    config = replace(LEARNER, lr=1.0, lr_schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    return [lr_factor(config, step, steps) for step in range(1, steps + 1)]


def test_it_warms_up_linearly_and_then_stays() -> None:
    assert factors("constant", 4, 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors("constant", 0, 3) == [1, 1, 1]


def test_it_falls_linearly_to_what_would_be_zero_after_the_last_step() -> None:
    assert factors("linear", 0, 4) == [1, 0.75, 0.5, 0.25]
    assert factors("linear", 2, 6) == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_it_falls_along_half_a_cosine() -> None:
    assert factors("cosine", 0, 4) == pytest.approx([1, 0.8535533905932737, 0.5, 0.14644660940672627])
