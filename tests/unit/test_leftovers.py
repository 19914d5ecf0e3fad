"""What a command leaves, with real processes: found by their mark whatever they did, and ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from matrix import _files

from rlopt.cluster import leftovers
from rlopt.cluster.watch import Watch, end_tree

FORGOTTEN = """import os, time
os.fork() and os._exit(0)
os.setsid()
os.fork() and os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)"""
"""A process that leaves its parent, its group and its session, as daemons do."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def forgotten(mark: str) -> psutil.Process:
    environment = os.environ | {leftovers.MARK: mark}
    started = subprocess.Popen([sys.executable, "-c", FORGOTTEN], env=environment, stdout=subprocess.PIPE, text=True)
    with started:
        assert started.stdout
        return psutil.Process(int(started.stdout.readline()))


def test_a_process_that_left_its_session_is_found_and_ended_and_others_are_not() -> None:
    mine, spared, others = forgotten("1-2-3"), forgotten("1-2-3"), forgotten("1-2-33")
    try:
        leftovers.sweep("1-2-3", spare=[spared.pid])
        until(lambda: not mine.is_running() or mine.status() == psutil.STATUS_ZOMBIE)
        assert spared.is_running()
        assert others.is_running()
    finally:
        for process in (spared, others):
            process.kill()


def test_a_process_is_found_while_it_executes_its_program() -> None:
    """Linux signals a parent that its child executes before the child's environment can be read."""
    for _ in range(200):
        with subprocess.Popen(["sleep", "60"], env={leftovers.MARK: "1-2-3"}) as process:
            found = leftovers.is_marked(process.pid, "1-2-3")
            process.kill()
        assert found


@pytest.mark.parametrize("library", ["setproctitle", "ray._raylet"])
def test_a_process_is_found_after_it_has_changed_its_title(library: str) -> None:
    code = f"import {library} as library, time; library.setproctitle('a title'); print(flush=True); time.sleep(60)"
    line, environment = [sys.executable, "-c", code], os.environ | leftovers.marking("1-2-3")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        titled = psutil.Process(process.pid).cmdline()[0]
        found = leftovers.is_marked(process.pid, "1-2-3")
        process.kill()
    assert titled.startswith("a title")
    assert found


def test_processes_without_an_environment_and_those_that_have_ended_are_nobodys() -> None:
    with subprocess.Popen(["sleep", "60"], env={}) as process:
        assert not leftovers.is_marked(process.pid, "1-2-3")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays, a zombie
        assert not leftovers.is_marked(process.pid, "1-2-3")
    assert not leftovers.is_marked(process.pid, "1-2-3")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leftovers, "FOLDERS", (tmp_path,))
    return tmp_path


def test_files_in_shared_memory_go_with_their_command_and_those_of_a_dead_one_at_the_next_start(folder: Path) -> None:
    here = f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    dead, elsewhere = f"{here}-{os.getpid():x}-1", "abc-1-2"  # this process's number, at another time; another container
    mine = leftovers.mark()
    names = [f"rlopt-{mine}-x", f"sem.rlopt-{mine}-y", f"rlopt-{dead}-x", f"rlopt-{elsewhere}-x", "psm_1"]
    for name in names:
        (folder / name).touch()
    leftovers.remove_stale()
    assert {path.name for path in folder.iterdir()} == {*names} - {names[2]}
    leftovers.sweep(mine)
    assert {path.name for path in folder.iterdir()} == {names[3], names[4]}


def test_shared_memory_and_semaphores_are_named_after_the_command() -> None:
    code = (
        "from rlopt.cluster import leftovers; leftovers.name_shared_memory(); import multiprocessing as m\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "kept = SharedMemory(create=True, size=8); lock = m.get_context('spawn').Lock()\n"
        "print(kept.name, lock._semlock.name); kept.close(); kept.unlink()"
    )
    environment = os.environ | {leftovers.MARK: "1-2-3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    shared, lock = done.stdout.split()
    assert shared.startswith("rlopt-1-2-3-")
    assert lock.startswith("/rlopt-1-2-3-")


def test_a_semaphore_of_another_command_that_lives_is_nothing_that_one_left() -> None:
    """As the fault matrix looks: tests beside it have some."""
    code = "import multiprocessing as m; lock = m.get_context('spawn').Lock(); print(lock._semlock.name, flush=True); input()"
    line = [sys.executable, "-c", code]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        file = Path(f"/dev/shm/sem.{process.stdout.readline().strip().removeprefix('/')}")
        assert file.exists()
        assert str(file) not in _files(set())
        process.communicate("\n")
    abandoned = Path("/dev/shm/sem.mp-test_leftovers")
    abandoned.touch()
    try:
        assert str(abandoned) in _files(set())
    finally:
        abandoned.unlink()


def test_what_a_killed_command_started_ends_with_it() -> None:
    code = (
        "import os, subprocess, sys, time; from rlopt.cluster import leftovers\n"
        "with leftovers.swept():\n"
        f" subprocess.run([sys.executable, '-c', {FORGOTTEN!r}], env=os.environ | {{leftovers.MARK: leftovers.mark()}})\n"
        " time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with driver:
        assert driver.stdout
        child = psutil.Process(int(driver.stdout.readline()))
        driver.send_signal(signal.SIGKILL)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_is_stopped_for_long_or_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlopt.cluster.watch.STOPPED_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        watch = Watch({"learner[1]": psutil.Process(process.pid)})
        assert watch.fault() is None
        process.send_signal(signal.SIGSTOP)
        until(lambda: watch.fault() is not None)
        assert f"learner[1] (process {process.pid}) has been stopped for" in str(watch.fault())
        at_once = Watch({"learner[1]": psutil.Process(process.pid)})
        assert at_once.fault(patience_s=60.0) is None
        assert at_once.fault(patience_s=0.0)
        process.send_signal(signal.SIGCONT)
        until(lambda: watch.fault() is None)
        process.kill()
        until(lambda: watch.fault() == f"learner[1] (process {process.pid}) died")
        assert watch.fault(stopped_alone=True) is None


def test_a_stopped_process_and_its_children_are_ended_and_not_another_with_its_number() -> None:
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGSTOP)
        began = psutil.Process(process.pid).create_time()
        end_tree(process.pid, began - 100)
        assert process.poll() is None
        end_tree(process.pid, began)
        assert process.wait() == -signal.SIGKILL
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
