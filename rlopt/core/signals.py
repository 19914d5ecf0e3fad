"""Signals that end a run: Ctrl-C at once; SIGTERM (from a cluster) and SIGHUP (a closing terminal) after a checkpoint."""

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

ENDS = (signal.SIGTERM, signal.SIGHUP)


def interrupts() -> None:
    """Have Ctrl-C, also where a shell started us with it ignored, and what ends a job raise KeyboardInterrupt here."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it was to go on without its terminal
        signal.signal(signal.SIGHUP, _interrupt)


@contextmanager
def told_to_end(ask: Callable[[], None]) -> Iterator[None]:
    """In here SIGTERM and SIGHUP only call `ask`."""

    def heard(number: int, frame: object) -> None:
        _survive_terminal(number)
        ask()

    with _handled(heard, [number for number in ENDS if signal.getsignal(number) is not signal.SIG_IGN]):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """In here these signals are ignored: a second Ctrl-C must not leave workers behind."""
    with _handled(signal.SIG_IGN, [signal.SIGINT, *ENDS]):
        yield


@contextmanager
def _handled(handler: object, numbers: list[signal.Signals]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: a library's, not from Python


def _interrupt(number: int, frame: object) -> None:
    _survive_terminal(number)
    raise KeyboardInterrupt


def drop(*streams: IO[str] | None) -> None:
    """Send what is written to these from now on to /dev/null, and what they still hold."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _survive_terminal(number: int) -> None:
    """Send output to /dev/null after the terminal has closed, where writing would raise."""
    if number == signal.SIGHUP:
        streams = (stream for stream in (sys.__stdout__, sys.__stderr__) if stream)
        drop(*(s for s in streams if stat.S_ISCHR(os.fstat(s.fileno()).st_mode)))  # `isatty` denies one that has closed
