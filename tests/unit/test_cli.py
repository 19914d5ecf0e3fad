"""How a command ends: with its exit status, what it said, and what libraries do at exit, and without Python's clean-up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlopt.config import cli
from rlopt.config.compose import typed
from rlopt.config.schema import Config
from rlopt.train import interrupted

COMMAND = """
import atexit, sys
from rlopt.config import cli

class Kept:
    def __del__(self):
        print("cleaned up")

kept = Kept()

def main():
    atexit.register(print, "a library's exit")
    print("done")
    {end}

cli.whole_process(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [("pass", 0, ""), ("sys.exit('error: x=1: is wrong')", 1, "error: x=1: is wrong\n"), ("sys.exit(130)", 130, "")],
)
def test_a_command_ends_with_its_status_and_all_that_it_said(end: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND.format(end=end)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "done\na library's exit\n", said)


def test_a_command_whose_output_nobody_reads_ends_without_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = COMMAND.format(end="print('more', flush=True)")
    done = subprocess.run([sys.executable, "-c", command], stdout=write, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    os.close(write)


def test_a_console_whose_reader_is_gone_says_nothing_more_and_raises_nothing() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        console = cli.Shown(file=pipe)
        console.print("first")
        assert os.read(read, 100) == b"first\n"
        os.close(read)
        console.print("nobody reads this")
        console.print("nor this")
        assert console.quiet


def test_an_error_of_ours_is_shown_by_python() -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND.format(end="1 / 0")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "done\na library's exit\ncleaned up\n"
    assert "ZeroDivisionError" in done.stderr


def test_who_interrupts_a_run_is_told_what_is_left_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted_now(config: Config) -> None:
        raise KeyboardInterrupt

    def said() -> str:
        with pytest.raises(SystemExit) as end:
            cli.run("config", typed, interrupted_now, interrupted, ["+algo=grpo", f"run.dir={tmp_path}"])
        assert end.value.code == 130
        return capsys.readouterr().err

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert said() == "interrupted: no checkpoint was saved yet, and the same command begins again\n"
        (kept := tmp_path / "checkpoints" / "step_5").mkdir(parents=True)
        (kept / "manifest.json").touch()
        assert said() == "interrupted: the last checkpoint is complete, and the same command continues from it\n"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
