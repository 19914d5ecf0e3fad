"""Runs of the real thing: the command line, Ray, vLLM and DeepSpeed, small and few."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ("data.prompts_per_step=4", "algo.group_size=4")
"""A step of 16 samples."""


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlopt.train", *overrides]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; fail with what it printed when it does not end well."""
    done = subprocess.run(command(*overrides, f"run.dir={folder}"), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished 45-step run of an algorithm, made once."""
    made: dict[str, Path] = {}

    def make(algo: str) -> Path:
        if algo not in made:
            folder = tmp_path_factory.mktemp(algo) / "run"
            train(folder, f"+algo={algo}", *SMALL, "trainer.total_steps=45", "trainer.save_every=25")
            made[algo] = folder
        return made[algo]

    return make
