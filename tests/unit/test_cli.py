"""How a command ends: with its exit status, what it said, and what libraries do at exit, and without Python's clean-up."""

import subprocess
import sys

import pytest

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


def test_an_error_of_ours_is_shown_by_python() -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND.format(end="1 / 0")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "done\na library's exit\ncleaned up\n"
    assert "ZeroDivisionError" in done.stderr
