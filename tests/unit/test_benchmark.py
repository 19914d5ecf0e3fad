"""What the speeds of a config's parts say, and what cannot be measured."""

from pathlib import Path

import pytest
from rich.console import Console
from test_settings import compose

from rlopt.core.errors import RloptError
from rlopt.run.benchmark import Machine, Speeds, benchmark

SPEEDS = Speeds(
    machine=Machine(matrix=1e9, copy=1e9),
    parameters=1000,
    ranks=1,
    engines=1,
    samples=100,
    tokens=4000,
    sequence_tokens=5000,
    start_s=9.0,
    engine_s=2.0,
    reference_s=1.0,
    update_s=3.0,
    together_s=5.0,
    together_samples=100,
    sync_s=0.1,
    sync_bytes=4000,
)


def test_limits_are_two_operations_a_parameter_and_token_to_sample_and_six_to_learn() -> None:
    assert SPEEDS.sampling_floor_s == 2 * 1000 * 5000 / 1e9
    assert SPEEDS.update_floor_s == 6 * 1000 * 5000 / 1e9


def test_together_is_compared_with_the_slower_of_engine_and_learner() -> None:
    assert SPEEDS.efficiency == pytest.approx(4.0 / 5.0)  # the learner takes 1 + 3 s for what both together do in 5
    assert SPEEDS.as_json()["efficiency"] == SPEEDS.efficiency


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["+algo=sft", "data.train=x"], "algo.name=sft: samples nothing, so there is no engine to measure"),
        (["+algo=grpo", "sync.mode=async", "sync.max_lag=30"], "sync.mode=async: has no windows to measure; leave it out"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(keys: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RloptError, match=message):
        benchmark(compose(*keys, f"run.dir={tmp_path}"), Console(quiet=True))
