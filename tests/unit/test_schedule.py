"""The schedule against reference values, and what follows from it."""

import json
from pathlib import Path

import pytest

from rlopt.orchestrator.schedule import Schedule

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())["schedule"]


@pytest.mark.parametrize("name", GOLDEN)
def test_versions_and_lags_equal_the_reference_values(name: str) -> None:
    golden = GOLDEN[name]
    schedule = Schedule(golden["sync_interval"], golden["sync_offset"])
    versions = golden["version_used_for_batch_b"]
    assert [schedule.version(b) for b in range(1, len(versions) + 1)] == versions
    lags = golden["lag_at_train_step_b (updates since sampling)"]
    assert [schedule.lag(b) for b in range(1, len(lags) + 1)] == lags


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2), (3, 7)])
def test_every_version_samples_up_to_its_last_batch_and_no_further(interval: int, offset: int) -> None:
    schedule = Schedule(interval, offset)
    for version in range(0, 10 * interval, interval):
        last = schedule.last_batch(version)
        assert schedule.version(last) == version
        assert schedule.version(last + 1) == version + interval
        assert schedule.syncs_after(version + interval)


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2)])
def test_the_worst_lag_is_reached_and_never_passed(interval: int, offset: int) -> None:
    schedule = Schedule(interval, offset)
    assert max(schedule.lag(b) for b in range(1, 200)) == schedule.worst_lag
