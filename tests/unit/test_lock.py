"""A run's folder belongs to one process at a time."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlopt.core.errors import RloptError
from rlopt.run.lock import held

HOLDER = """
import sys, time
from pathlib import Path
from rlopt.run.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_it_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        who = f"run.dir={run}: is in use by process {first.pid} on {socket.gethostname()}; end it, or choose another run.dir"
        with pytest.raises(RloptError) as refused, held(run):
            pass
        assert str(refused.value) == who
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with held(run):
        (run / "config.yaml").touch()
    assert (run / "config.yaml").is_file()


def test_a_run_that_was_refused_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="no such model"), held(tmp_path / "run"):
        raise RloptError("no such model")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    with held(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    why = r"run.dir=.*run: cannot be written \(Not a directory\); choose another run.dir"
    with pytest.raises(RloptError, match=why), held(tmp_path / "file" / "run"):
        pass


def test_a_folder_that_somebody_removes_meanwhile_hides_no_error(tmp_path: Path) -> None:
    def fail() -> None:
        with held(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            raise RloptError("what happened")

    with pytest.raises(RloptError, match="what happened"):
        fail()
