"""How a run is told to end, in a process of its own."""

import os
import pty
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, time
from rlopt.core import signals
{before}
signals.interrupts()
heard = []
try:
    with signals.told_to_end(lambda: heard.append(1)):
        print("ready", file=sys.stderr, flush=True)
        end = time.monotonic() + 20
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
    print("a line for a terminal that is gone", flush=True)
    sys.exit(7 if heard else 8)
except KeyboardInterrupt:
    sys.exit(9)
"""


def start(before: str = "", stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    program = PROGRAM.format(before=before)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGHUP, 7), (signal.SIGINT, 9)])
def test_what_ends_a_job_asks_for_an_end_and_ctrl_c_ends_at_once(number: signal.Signals, code: int) -> None:
    with start() as process:
        process.send_signal(number)
        assert process.wait(timeout=30) == code


def test_a_run_that_was_to_outlive_its_terminal_does_not_hear_it_close() -> None:
    with start("signal.signal(signal.SIGHUP, signal.SIG_IGN)") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 7


def test_output_after_the_terminal_closed_is_not_an_error() -> None:
    ours, theirs = pty.openpty()
    with start(stdout=theirs) as process:
        os.close(theirs)
        os.close(ours)  # now writing to it is an error
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=30) == 7
