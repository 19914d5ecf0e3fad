"""A process for code of the user's, which may hang, leak, fork or crash: it ends with all that it started."""

import ctypes
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil

StartMethod = Literal["spawn", "forkserver"]
"""How multiprocessing starts a process: anew, or as a fork of a server that has imported most of what it needs."""

START_DEADLINE_S = 120.0
"""Seconds that a process may take to import the user's code."""

PRINTED = 200
"""How many characters of what the user's code printed an error shows."""

PR_SET_CHILD_SUBREAPER = 36


class Killable:
    """A process that runs `serve(make, pipe)`, and this end of its pipe."""

    def __init__(
        self, serve: Callable[[Callable[[], Any], Connection], None], make: Callable[[], Any], start_method: StartMethod
    ) -> None:
        context: Any = multiprocessing.get_context(start_method)
        self.pipe, child = context.Pipe()
        self._process = context.Process(target=_enter, args=(serve, make, child), daemon=True)
        self._process.start()
        child.close()

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it, with a signal."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        return False

    def end(self) -> None:
        """Kill it and all that it started; whoever waits for its pipe gets an EOFError."""
        pid = self._process.pid
        assert pid is not None
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.suspend()  # it is the parent of all that lost theirs, and starts no more
            while children := [child for child in process.children(recursive=True) if _kill(child)]:
                psutil.wait_procs(children, timeout=1)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # also where it died before
        self._process.kill()

    def kill(self) -> None:
        """As `end`, and wait for it."""
        self.end()
        self._process.join()
        self.pipe.close()


class Tail(io.TextIOBase):
    """Keeps the last characters of what is written."""

    text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text[-PRINTED:])[-PRINTED:]
        return len(text)


def said_of(error: BaseException, printed: str) -> str:
    """What an error of the user's code says, where it was raised, and what had been printed before."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = f"; before that it printed {printed!r}" if printed else ""
    return f"raised {type(error).__name__}: {error} ({where.filename}:{where.lineno}){said}"


def _enter(serve: Callable[[Callable[[], Any], Connection], None], make: Callable[[], Any], pipe: Connection) -> None:
    os.setsid()  # its own process group, to be killed as one; Ctrl-C, which reaches the whole terminal, is ignored
    _adopt_orphans()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # functions may start processes
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(make, pipe)


def _adopt_orphans() -> None:
    """Become the parent of every process whose parent ended and that this one started, in whatever session it is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with_parent() -> None:
    """Exit when the parent is gone: it cannot kill this process, and a hanging function would not see the pipe close."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        for child in psutil.Process().children(recursive=True):
            _kill(child)
        os.killpg(0, signal.SIGKILL)


def _kill(process: psutil.Process) -> bool:
    """Kill a process; whether it was alive."""
    with suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            return True
    return False
