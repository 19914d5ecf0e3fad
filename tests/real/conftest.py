"""Runs of the real thing: the command line, Ray, vLLM and DeepSpeed, small and few.

Tests in `crew` take over one set of engines and a learner, tests in `starts` start what they look at.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from rlopt.cluster import leftovers
from rlopt.models.loading import find_model
from rlopt.run import checkpoint, workers

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
    running = psutil.process_iter()
    assert not [process.cmdline() for process in running if leftovers.is_marked(process.pid, mark, "RLOPT_TEST_MARK")]
    return done


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


TOLERANCE = 1e-4
"""Nats. vLLM and the learner both compute in float32 and differ by rounding alone, 1e-5 at most as measured; a weight that did
not arrive shows as 1e-2 and more."""


def on_schedule(run: Path) -> None:
    """Assert that 45 steps of 16 samples were sampled by versions 0, 20 and 40, and that the ratios show it."""
    metrics = rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 46))
    assert [row["version"] for row in metrics] == [0] * 20 + [20] * 20 + [40] * 5
    assert [row["offpolicy/lag_max"] for row in metrics] == [*range(20), *range(20), *range(5)]
    assert [row["offpolicy/lag_mean"] for row in metrics] == [*range(20), *range(20), *range(5)]
    assert metrics[-1]["samples_seen"] == 45 * 16
    by_step = {row["step"]: row for row in metrics}
    for fresh in (1, 21, 41):  # sampled with the weights that the learner still has: the ratio is 1 on every token
        assert abs(by_step[fresh]["offpolicy/ratio_max"] - 1) < TOLERANCE
        assert abs(by_step[fresh]["offpolicy/ratio_mean"] - 1) < TOLERANCE
    for stale in (20, 40):
        assert by_step[stale]["offpolicy/ratio_max"] > 1.01
    assert by_step[1]["actor/kl_k2"] < 1e-10
    assert by_step[41]["actor/kl_k2"] > 1e-5  # so what the engines sampled from at 41 was not the first model


def sound(run: Path) -> None:
    """Assert that engines agreed with the learner at every sync, and that transformers loads the last checkpoint."""
    syncs = [event for event in rows(run / "events.jsonl") if event["event"] == "sync"]
    assert syncs
    assert all(sync["sync/canary_abs_diff"] < TOLERANCE for sync in syncs)
    AutoModelForCausalLM.from_pretrained(checkpoint.find_all(run)[-1] / "hf")


def alike(run: Path, other: Path, steps: int) -> None:
    """Assert that the first steps of two runs learned the same from the same samples, but for rounding."""
    one, two = (rows(folder / "metrics.jsonl")[:steps] for folder in (run, other))
    assert len(one) == len(two) == steps
    for theirs, mine in zip(one, two, strict=True):
        assert theirs["reward/mean"] == mine["reward/mean"]  # the same tokens, whichever engine spoke them
        for key in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "actor/kl_k2", "offpolicy/ratio_mean"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-6), key


def steps(folder: Path) -> int:
    """How many steps a run has written down."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@dataclass(frozen=True)
class Ended:
    """A run that was ended from outside. Its checkpoints were complete then.

    Attributes:
        metrics: what it had written down.
        kept: names of its checkpoints.
        listening: addresses that its processes listened on.
        seconds: how long it took to end.
        left: names of its processes that outlived it.
    """

    folder: Path
    errors: str
    returncode: int
    metrics: list[dict[str, Any]]
    kept: list[str]
    listening: set[str]
    seconds: float
    left: list[str]


def until(
    condition: Callable[[], bool],
    still: Callable[[], bool] = lambda: True,
    why: Callable[[], object] = lambda: "",
    seconds: float = 300,
    every: float = 0.05,
) -> None:
    """Wait for a condition, asked every so many seconds; fail with `why` when it cannot come about, or does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert still(), why()
        assert time.monotonic() < deadline, why()
        time.sleep(every)


def end(folder: Path, when: Callable[[], bool], how: Callable[[int], None], *overrides: str) -> Ended:
    """Start a run of GRPO, and end it when it is time."""
    said = folder.with_name("stderr")  # a file: those who outlive a driver keep a pipe open
    line = command("+algo=grpo", *SMALL, *overrides, f"run.dir={folder}")
    with said.open("w") as file:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    until(when, lambda: process.poll() is None, said.read_text)
    process.send_signal(
        signal.SIGSTOP
    )  # no step is made while its processes are looked at, which takes seconds on a busy machine
    driver = psutil.Process(process.pid)
    family = driver.children(recursive=True)
    try:
        names = {member: member.name() for member in family}
        assert "VLLM::EngineCore" in names.values()
        (server,) = (child for child in driver.children() if "rlopt.cluster.fork_server" in child.cmdline())
        assert {child.name().partition(".")[0] for child in server.children()} == {"ray::RolloutWorker", "ray::LearnerWorker"}
        marked = leftovers.marked(server.environ()[leftovers.MARK])
        unmarked = {names[member] for member in family if member.pid not in marked}
        assert unmarked <= {"python", "wandb-core", "wandb-symon"}, "more than the guard and W&B"
        listening = {c.laddr.ip for member in family for c in _connections(member) if c.status == psutil.CONN_LISTEN}
    except BaseException:
        process.kill()
        process.wait()
        raise
    how(process.pid)
    process.send_signal(signal.SIGCONT)
    told = time.monotonic()
    returncode = process.wait(timeout=60)
    seconds = time.monotonic() - told
    _, alive = psutil.wait_procs(family, timeout=30 if returncode == -signal.SIGKILL else 10)
    found = checkpoint.find_all(folder)
    for path in found:
        checkpoint.verify(path)
    return Ended(
        folder=folder,
        errors=said.read_text(),
        returncode=returncode,
        metrics=rows(folder / "metrics.jsonl"),
        kept=[path.name for path in found],
        listening=listening,
        seconds=seconds,
        left=[names[member] for member in alive],
    )


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session", autouse=True)
def model() -> None:
    """The tiny model is trained before the first test, which has a deadline, needs it."""
    find_model("tiny_s", lambda *_: None)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the crew; `fresh` in it is its learner as it began."""
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="session")
def crew(home: Path) -> Iterator[workers.RunWorkers]:
    """Engines and a learner for one run after another. A test that starts Ray by itself cannot run beside it."""
    from crews import started

    with started(home) as made:
        yield made


WHOLE = (*SMALL, "trainer.total_steps=45", "trainer.save_every=15")
"""Of the runs of `run`, and of GRPO's that is interrupted."""


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """GRPO's run, ended by Ctrl-C between two checkpoints and after a sync."""
    folder = tmp_path_factory.mktemp("grpo") / "run"
    return end(folder, lambda: steps(folder) >= 21, lambda pid: os.kill(pid, signal.SIGINT), *WHOLE)


@pytest.fixture(scope="session")
def gone_on(interrupted: Ended) -> Path:
    """That run to its end, by the same command."""
    train(interrupted.folder, "+algo=grpo", *WHOLE)
    return interrupted.folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, crew: workers.RunWorkers, home: Path) -> Callable[[str], Path]:
    """The finished 45-step run of an algorithm on the crew, made once."""
    import crews

    made: dict[str, Path] = {}

    def make(algo: str) -> Path:
        if algo not in made:
            folder = tmp_path_factory.mktemp(algo) / "run"
            crews.train(crew, crews.prepared_for(folder, f"+algo={algo}", *WHOLE), home / "fresh", keep=True)
            made[algo] = folder
        return made[algo]

    return make
