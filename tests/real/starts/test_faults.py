"""A dozen rows of the fault matrix (`tests/faults`): the run goes on by itself, with the same numbers."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import rows
from matrix import Result, Row, execute

STEPS, SAVE_EVERY = 24, 2

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

CHAINS = {
    "lockstep 1+1": (
        ("reward", "killed", "sampling", "undisturbed"),
        ("engine", "killed", "evaluating", "recovered"),
        ("learner", "killed", "learning", "recovered"),
        ("engine", "slow", "syncing", "undisturbed"),
        ("scheduler", "stopped", "sampling", "recovered"),
        ("raylet", "killed", "saving", "recovered"),
        ("learner", "slow", "learning", "undisturbed"),
        ("clock", "slow", "sampling", "undisturbed"),
    ),
    "async 2+1": (
        ("scheduler", "killed", "sampling", "recovered"),
        ("reward", "killed", "evaluating", "undisturbed"),
        ("gcs_server", "killed", "syncing", "recovered"),
        ("engine", "stopped", "syncing", "recovered"),
    ),
}
"""Shape to what happens in one run of it: the victim, what befalls it, while the run does what, and what becomes of the run."""


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Result]]]:
    """The run of a shape with its faults, and what became of each."""
    home = tmp_path_factory.mktemp("faults")

    @cache
    def made(shape: str) -> tuple[Path, list[Result]]:
        folder = home / shape.replace(" ", "-")
        results = execute([Row(*fault, shape) for *fault, _ in CHAINS[shape]], folder, STEPS, SAVE_EVERY)
        return folder / "disk" / "run", results

    return made


@pytest.mark.parametrize("shape", CHAINS)
def test_a_run_goes_on_by_itself_through_one_fault_after_another_with_the_same_numbers_and_leaves_nothing(
    shape: str, chains: Callable[[str], tuple[Path, list[Result]]]
) -> None:
    _, results = chains(shape)
    assert [(result.row, result.outcome) for result in results] == [(Row(*fault, shape), end) for *fault, end in CHAINS[shape]]
    for result in results:
        assert (result.equal, result.left, result.said) == (True, [], "")
        if result.outcome == "recovered":
            assert result.detected_s is not None
            assert result.detected_s < 30


def test_an_asynchronous_run_with_faults_is_reproduced_to_the_last_bit(
    chains: Callable[[str], tuple[Path, list[Result]]],
) -> None:
    run, _ = chains("async 2+1")
    line = [sys.executable, "-m", "rlopt.reproduce", str(run), "--steps", "3:9"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps 3 to 9, made again from" in done.stdout
    assert "all equal to the last bit" in done.stdout
    assert len(rows(run / "metrics.jsonl")) == STEPS
