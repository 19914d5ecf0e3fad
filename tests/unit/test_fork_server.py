"""Workers forked from one process: each is what the command would have started, and none outlives its driver."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlopt.cluster import fork_server
from rlopt.cluster.fork_client import CONTEXT, JOB
from rlopt.config.sections import ClusterConfig

OWN = ClusterConfig("local", 1, 0.0, 0.0, start_deadline_s=60.0, step_deadline_s=60.0)

WORKER = """
import json, os, sys, tempfile, threading
seen = {"argv": sys.argv[1:], "cwd": os.getcwd(), "name": __name__, "path": sys.path[0], "threads": threading.active_count()}
seen |= {"imported": "colorsys" in sys.modules, "set": os.environ.get("SET"), "job": os.environ.get("RAY_JOB_ID")}
seen |= {"temporary": tempfile.gettempdir()}
print(json.dumps(seen), flush=True)
sys.stdin.readline()
"""
"""What stands for Ray's worker: it says what it finds, and ends after a line on its input."""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with fork_server.imported(OWN, "colorsys"):
        yield


def start(folder: Path, job: str = JOB, **environment: str) -> "subprocess.Popen[str]":
    """Start a worker as Ray does."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    context = json.dumps({"env_vars": {"SET": "here", "TMPDIR": str(folder)}, "py_executable": sys.executable})
    command = [sys.executable, fork_server.CLIENT, "--language=PYTHON", CONTEXT + context, str(script), "--id=7"]
    env = os.environ | {"RAY_JOB_ID": job} | environment
    return subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def seen(worker: "subprocess.Popen[str]") -> dict[str, object]:
    assert worker.stdout
    found: dict[str, object] = json.loads(worker.stdout.readline())
    worker.communicate("\n", timeout=20)
    return found


def test_a_forked_worker_has_the_arguments_folder_environment_and_output_of_its_command(tmp_path: Path) -> None:
    found = seen(start(tmp_path))
    wanted = {"argv": ["--id=7"], "cwd": str(tmp_path), "name": "__main__", "path": str(tmp_path), "threads": 1}
    assert found == wanted | {"imported": True, "set": "here", "job": JOB, "temporary": str(tmp_path)}


@pytest.mark.parametrize("why", ["another job", "no server", "a server that is gone"])
def test_what_the_server_cannot_fork_is_started_anew(tmp_path: Path, why: str) -> None:
    if why == "another job":
        worker = start(tmp_path, job="02000000")
    else:
        worker = start(tmp_path, RLOPT_FORK_SERVER=str(tmp_path / "none") if why == "no server" else _left_behind(tmp_path))
    found = seen(worker)
    assert (found["imported"], found["set"], found["argv"]) == (False, "here", ["--id=7"])


def _left_behind(folder: Path) -> str:
    """The socket of a process that has ended."""
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder / "old")], check=True)
    return str(folder / "old")


def test_a_client_that_is_killed_before_it_asks_does_not_end_the_server(tmp_path: Path) -> None:
    code = f"import os, socket; socket.socket(socket.AF_UNIX).connect(os.environ['{fork_server.ADDRESS}'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert seen(start(tmp_path))["imported"]


def test_the_client_ends_with_its_worker(tmp_path: Path) -> None:
    worker = start(tmp_path)
    assert worker.stdout
    worker.stdout.readline()
    assert worker.poll() is None
    forks = [p for p in psutil.process_iter() if str(tmp_path) == _cwd(p) and p.pid != worker.pid]
    assert len(forks) == 1
    forks[0].kill()
    worker.communicate(timeout=20)
    assert worker.returncode == 0


def _cwd(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def test_the_server_and_its_files_end_with_a_driver_that_was_killed() -> None:
    code = (
        "import os, time; from rlopt.cluster import fork_server; from rlopt.config.sections import ClusterConfig\n"
        "own = ClusterConfig('local', 1, 0.0, 0.0, start_deadline_s=60.0, step_deadline_s=60.0)\n"
        "with fork_server.imported(own):\n"
        " print(os.environ[fork_server.ADDRESS], *fork_server.running, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        path, pid = driver.stdout.readline().split()
        address, server = Path(path), psutil.Process(int(pid))
        was_there = address.is_socket()
        driver.send_signal(signal.SIGKILL)
    assert was_there
    server.wait(60)
    deadline = time.monotonic() + 60
    while address.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("keys", [{"address": "auto"}, {"gpus_per_engine": 1.0}, {"gpus_per_learner": 0.5}])
def test_a_joined_cluster_and_gpus_have_no_server(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_server.ADDRESS, "of a command that started this one")
    with fork_server.imported(replace(OWN, **keys)):
        assert fork_server.ADDRESS not in os.environ
