"""Runs of the real thing: the command line, Ray, vLLM and DeepSpeed, small and few."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlopt import launch
from rlopt.model import find_model

SMALL = ("data.prompts_per_step=4", "algo.group_size=4")
"""A step of 16 samples."""


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlopt.train", *overrides]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; fail with what it printed when it does not end well."""
    done = subprocess.run(command(*overrides, f"run.dir={folder}"), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def try_out(line: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that is over soon; fail if a process of it, or of any of its children, is left running."""
    mark = uuid.uuid4().hex
    env = os.environ | {"RLOPT_TEST_MARK": mark}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=cwd, env=env)
    assert not [process.cmdline() for process in psutil.process_iter() if _mark(process) == mark]
    return done


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RLOPT_TEST_MARK")
    except psutil.Error:
        return None


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="session", autouse=True)
def model() -> None:
    """The tiny model is trained before the first test, which has a deadline, needs it."""
    find_model("tiny_s", lambda *_: None)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the crew; `fresh` in it is its learner as it began."""
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="session")
def crew(home: Path) -> Iterator[launch.Crew]:
    """Engines and a learner for one run after another. A test that starts Ray by itself cannot run beside it."""
    from crews import started

    with started(home) as made:
        yield made


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The finished 45-step run of an algorithm, made once: GRPO's by the command, the others' on the crew."""
    made: dict[str, Path] = {}

    def make(algo: str) -> Path:
        if algo not in made:
            folder = tmp_path_factory.mktemp(algo) / "run"
            overrides = (f"+algo={algo}", *SMALL, "trainer.total_steps=45", "trainer.save_every=25")
            if algo == "grpo":
                train(folder, *overrides)
            else:
                import crews

                fresh = request.getfixturevalue("home") / "fresh"
                crews.train(request.getfixturevalue("crew"), crews.prepared_for(folder, *overrides), fresh)
            made[algo] = folder
        return made[algo]

    return make
