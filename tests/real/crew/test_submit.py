"""Runs as Ray jobs, on a cluster of two nodes with its dashboard on loopback."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import crews
import psutil
import pytest
from conftest import SMALL, alike, rows, sound, steps, try_out, until

from rlopt.cluster import leftovers
from rlopt.run import workers as workers_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

SECRET = "a-key-that-nobody-may-read"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""What a node has: a job asks it for `python`."""
MARK = f"0-{os.getpid():x}-0"
"""Of all processes of the cluster and their files, so that they can be removed together."""


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder with a short name, because names of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def head(short: Path) -> Iterator[tuple[str, Path]]:
    """The address for jobs, and the folder of the cluster's logs."""
    folder = short / "head"
    ports = _free_ports(11)
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", "--num-cpus=1"]
    named = (
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--metrics-export-port",
        "--runtime-env-agent-port",
    )
    env = ENVIRONMENT | {"RAY_AUTH_MODE": "token"} | leftovers.marking(MARK)
    first = [
        "--head",
        f"--port={ports[0]}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports[1]}",
        f"--temp-dir={folder}",
    ]
    _run([*start[:3], "get-auth-token", "--generate"], env)  # where no run ever made one
    _run([*start, *first, *(f"{name}={port}" for name, port in zip(named, ports[2:6], strict=True))], env)
    address = (folder / "ray_current_cluster").read_text()
    other = ["--address", address, f"--temp-dir={short / 'second'}"]  # else it would tidy the head's packages away as its own
    _run([*start, *other, *(f"{name}={port}" for name, port in zip(named, ports[6:10], strict=True))], env)
    _wait_for_agent(f"http://127.0.0.1:{ports[1]}")
    yield f"http://127.0.0.1:{ports[1]}", folder
    leftovers.sweep(MARK)


def _under(process: psutil.Process, short: Path) -> bool:
    """Whether a process was started by a node of this cluster."""
    return any(str(short) in " ".join(parent.cmdline()) for parent in process.parents())


def _run(line: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_agent(address: str) -> None:
    """A dashboard answers seconds before it takes jobs."""
    ask = "import sys; from ray.job_submission import JobSubmissionClient as C; C(sys.argv[1]).submit_job(entrypoint='true')"
    line = [sys.executable, "-c", ask, address]
    env = ENVIRONMENT | {"RAY_AUTH_MODE": "token"}
    until(lambda: subprocess.run(line, capture_output=True, env=env).returncode == 0, seconds=60, every=1)


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = ENVIRONMENT | {"WANDB_API_KEY": SECRET}
    return subprocess.run(
        [sys.executable, "-m", "rlopt.submit", *arguments], capture_output=True, text=True, timeout=400, env=env
    )


def test_a_job_over_two_nodes_survives_an_engine_saves_when_stopped_continues_and_logs_no_key(
    head: tuple[str, Path], short: Path, crew: workers_run.RunWorkers, home: Path, tmp_path: Path
) -> None:
    address, logs = head
    (tmp_path / "mine.py").write_text("from rlopt.data.arithmetic import reward as score\n")
    run = tmp_path / "run"
    keys = ["--address", address, "--send-keys", "--include", str(tmp_path / "mine.py")]
    overrides = ["+algo=grpo", *SMALL, "trainer.save_every=0", "sync.interval=2", "tracking.wandb=offline"]
    overrides += [f"run.dir={run}", "reward.fn=mine:score", "rollout.engines=2", "learner.workers=2", "learner.zero_stage=3"]
    overrides += ["learner.token_budget=300"]
    done = submit(*keys, "--", *overrides, "trainer.total_steps=100000")
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.strip()

    def wait(condition: Callable[[], bool], every: float = 0.2) -> None:
        until(condition, why=lambda: submit("--address", address, "logs", job).stdout, every=every)

    wait(lambda: steps(run) >= 4)
    models = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "VLLM::EngineCore" and _under(p, short)]
    assert len(models) == 2
    models[0].kill()  # not the actor: that has to notice
    wait(lambda: "engine_lost" in (run / "events.jsonl").read_text())
    lost = steps(run)
    wait(lambda: steps(run) >= lost + 4)
    assert "asked to stop: it finishes its step, saves a checkpoint" in submit("--address", address, "stop", job).stdout
    wait(lambda: submit("--address", address, "status", job).stdout == "STOPPED\n", every=2)
    (checkpoint,) = run.glob("checkpoints/step_*/manifest.json")
    step = json.loads(checkpoint.read_text())["step"]
    metrics = rows(run / "metrics.jsonl")
    assert step == len(metrics)
    assert [row["version"] for row in metrics] == [2 * (number // 2) for number in range(step)]
    assert all(row["samples_seen"] == 16 * row["step"] for row in metrics)
    sound(run)
    keys_of_one = ("sync.interval=2", "learner.token_budget=300", "trainer.total_steps=4")
    crews.train(crew, crews.prepared_for(tmp_path / "one", "+algo=grpo", *SMALL, *keys_of_one), home / "fresh")
    alike(run, tmp_path / "one", 4)
    (loss,) = [event for event in rows(run / "events.jsonl") if event["event"] == "engine_lost"]
    assert loss["engine"] in (0, 1)

    again = submit(*keys, "--wait", "--", *overrides, "rollout.engines=1", f"trainer.total_steps={step + 2}")
    assert again.returncode == 0, again.stdout + again.stderr
    job, *printed = again.stdout.splitlines()
    assert printed[-1] == "SUCCEEDED"
    assert any(line.startswith("training reward") for line in printed)
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == list(range(1, step + 3))
    assert submit("--address", address, "status", job).stdout == "SUCCEEDED\n"
    assert "training reward" in submit("--address", address, "logs", job).stdout

    workers = [event for event in rows(run / "events.jsonl") if event["event"] == "workers"]
    assert [(len({*each["engines"].values()}), len({*each["learners"]})) for each in workers] == [(2, 2), (1, 2)]
    for path in [*logs.rglob("logs/**/*"), *run.rglob("*")]:
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(("arguments", "message"), [
    (["status", "raysubmit_nothing"], "raysubmit_nothing: .* does not know this job"),
    (["--", "learner.lr=1"], "algo: not given"),
])  # fmt: skip
def test_what_a_cluster_cannot_answer_is_one_line(head: tuple[str, Path], arguments: list[str], message: str) -> None:
    import re

    done = try_out([sys.executable, "-m", "rlopt.submit", "--address", head[0], *arguments])
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
