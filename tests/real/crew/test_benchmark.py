"""The parts of a config measured on real engines and a real learner."""

from pathlib import Path

import pytest
from crews import SMALL, instruct, prepared_for

from rlopt.run import workers
from rlopt.run.benchmark import Machine, measure

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_each_part_is_measured_over_a_window_and_both_together_over_the_next(
    crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    keys = ("rollout.engines=2", "sync.interval=2", "trainer.total_steps=5")
    prepared = prepared_for(tmp_path / "run", "+algo=grpo", *SMALL, *keys)
    instruct(crew, prepared, home / "fresh")
    speeds = measure(prepared, crew, Machine(1e11, 1e10), start_s=1.0)
    assert (speeds.samples, speeds.together_samples) == (2 * 16, 2 * 16)
    assert speeds.sequence_tokens > speeds.tokens >= 2 * 16
    assert speeds.sync_bytes == 4 * speeds.parameters  # in float32
    assert min(speeds.engine_s, speeds.reference_s, speeds.update_s, speeds.sync_s) > 0
    assert speeds.together_s > speeds.sync_s
    assert speeds.engine_cpu_s is not None
    assert speeds.learner_cpu_s is not None
    assert (
        0
        < speeds.learner_cpu_s + speeds.engine_cpu_s
        < 1.2 * speeds.cores * (speeds.engine_s + speeds.reference_s + speeds.update_s)
    )


def test_an_asynchronous_run_is_measured_in_its_own_way(crew: workers.RunWorkers, home: Path, tmp_path: Path) -> None:
    keys = ("rollout.engines=2", "sync.mode=async", "sync.interval=1", "sync.max_lag=1", "trainer.total_steps=9")
    prepared = prepared_for(tmp_path / "run", "+algo=grpo", *SMALL, *keys)
    instruct(crew, prepared, home / "fresh")
    speeds = measure(prepared, crew, Machine(1e11, 1e10), start_s=1.0)
    assert (speeds.samples, speeds.together_samples) == (2 * 16, 2 * 16)
    assert speeds.sync_bytes == 4 * speeds.parameters
