"""How a run ends from outside: told by a cluster, or killed. And what it leaves."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, command, rows

from rlopt import checkpoint
from rlopt.export import export
from rlopt.model import find_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


@dataclass(frozen=True)
class Ended:
    """A run that was ended from outside.

    Attributes:
        seconds: how long it took to end.
        left: names of its processes that outlived it.
    """

    folder: Path
    errors: str
    returncode: int
    seconds: float
    left: list[str]


def end(folder: Path, how: Callable[[int], None], env: dict[str, str], *overrides: str) -> Ended:
    """Start a run, end it after its third step."""
    line = command("+algo=grpo", *SMALL, "tracking.wandb=disabled", *overrides, f"run.dir={folder}")
    said = folder.with_name("stderr")  # a file: those who outlive a driver keep a pipe open
    with said.open("w") as file:
        process = subprocess.Popen(line, stderr=file, start_new_session=True, env=os.environ | env)
    deadline = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() or len(rows(folder / "metrics.jsonl")) < 3:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    names = {member: member.name() for member in family}
    assert {"VLLM::EngineCore", "VLLM::Worker"} <= set(names.values())
    how(process.pid)
    told = time.monotonic()
    returncode = process.wait(timeout=60)
    seconds = time.monotonic() - told
    if returncode == -signal.SIGKILL:  # Ray's two agents take their time
        family = [member for member in family if "Agent" not in names[member]]
    _, alive = psutil.wait_procs(family, timeout=30 if returncode == -signal.SIGKILL else 10)
    return Ended(folder, said.read_text(), returncode, seconds, [names[member] for member in alive])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """In bfloat16, where there is no compiler."""
    folder = tmp_path_factory.mktemp("killed")
    # Not where it was compiled before.
    env = {"CXX": "false"} | {kept: str(folder / kept) for kept in ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    return end(folder / "run", lambda pid: os.kill(pid, signal.SIGKILL), env, "model.dtype=bfloat16", "sync.interval=2")


def test_a_run_in_bfloat16_agrees_within_its_rounding_and_asks_for_no_compiler(killed: Ended) -> None:
    gaps = [row["sync/canary_abs_diff"] for row in rows(killed.folder / "events.jsonl") if row["event"] == "sync"]
    assert len(gaps) >= 2
    assert all(1e-3 < gap < 0.5 for gap in gaps)  # 0.08 to 0.12 as measured


def test_nothing_outlives_a_driver_that_was_killed(killed: Ended) -> None:
    assert killed.returncode == -signal.SIGKILL
    assert not killed.left


ODD = '{"do_sample": false, "temperature": 0.9, "eos_token_id": 1, "pad_token_id": 0}'
"""A generation config that transformers reads and would not write."""


@pytest.fixture(scope="module")
def told_to_end(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """By a SIGTERM to all of its process group; its model has dropout and an odd generation config."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(find_model("tiny_s", lambda *_: None), folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    (folder / "model" / "generation_config.json").write_text(ODD)
    keys = (f"model.path={folder / 'model'}", "sync.interval=20")
    return end(folder / "run", lambda pid: os.killpg(pid, signal.SIGTERM), {}, *keys)  # as `timeout` and clusters do


def test_a_run_whose_whole_process_group_is_told_to_end_saves_what_it_made(told_to_end: Ended) -> None:
    assert told_to_end.returncode == 130
    assert told_to_end.errors.splitlines()[-1].startswith("interrupted: the last checkpoint stands"), told_to_end.errors
    assert told_to_end.seconds < 25
    assert not told_to_end.left
    (kept,) = checkpoint.find_all(told_to_end.folder)
    checkpoint.verify(kept)
    assert kept.name == f"step_{len(rows(told_to_end.folder / 'metrics.jsonl'))}"


def test_a_model_with_dropout_learns_without_and_one_that_transformers_would_not_write_is_saved(
    told_to_end: Ended, tmp_path: Path
) -> None:
    fresh = rows(told_to_end.folder / "metrics.jsonl")[0]  # sampled by the weights that learn from it
    assert (fresh["offpolicy/lag_max"], fresh["offpolicy/ratio_mean"]) == (0, pytest.approx(1, abs=1e-4))
    hf = checkpoint.find_all(told_to_end.folder)[-1] / "hf"
    assert (hf / "generation_config.json").read_text() == ODD
    assert json.loads((hf / "config.json").read_text())["attention_dropout"] == 0.3
    assert export(told_to_end.folder, tmp_path / "out").difference < 1e-3
    assert (tmp_path / "out" / "generation_config.json").read_text() == ODD
