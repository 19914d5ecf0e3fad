"""Rows of the fault matrix (`tests/faults`), one of each kind: the run goes on by itself, with the same numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import rows
from matrix import Row, execute, undisturbed

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

ALONE = "lockstep 1+1"
ROWS = (
    Row("learner", "killed", "learning", ALONE),
    Row("gcs_server", "killed", "syncing", "async 2+1"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where undisturbed runs are, and each row's own folder."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_run_goes_on_by_itself_with_the_same_numbers_and_leaves_nothing(row: Row, home: Path) -> None:
    result = execute(row, undisturbed(row.shape, home), home)
    assert (result.outcome, result.equal, result.left, result.said) == ("recovered", True, [], "")
    assert result.detected_s is not None
    assert result.detected_s < 30


def test_an_asynchronous_run_is_reproduced_to_the_last_bit(home: Path) -> None:
    run = undisturbed("async 2+1", home)
    line = [sys.executable, "-m", "rlopt.reproduce", str(run), "--steps", "5:9"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps 5 to 9, made again from" in done.stdout
    assert "all equal to the last bit" in done.stdout
    assert len(rows(run / "metrics.jsonl")) == 12
