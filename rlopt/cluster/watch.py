"""Processes that must neither die nor be stopped."""

import time
from collections.abc import Mapping
from typing import Protocol

import psutil

STOPPED_S = 5.0
"""Seconds that a process may be stopped, by a SIGSTOP: nobody would start it again."""


class Process(Protocol):
    """One of this machine, by psutil, or what stands for one of another."""

    @property
    def pid(self) -> int: ...
    def status(self) -> str: ...


class Watch:
    """Looks at processes by number, never by name."""

    def __init__(self, processes: Mapping[str, Process]) -> None:
        self._processes = processes
        self._stopped = dict[str, float]()

    def fault(self, stopped_alone: bool = False, patience_s: float | None = None) -> str | None:
        """What is wrong with one of them, or None.

        Args:
            stopped_alone: a death is not.
            patience_s: seconds that one may be stopped; None: `STOPPED_S`.
        """
        patience_s = STOPPED_S if patience_s is None else patience_s
        for name, process in self._processes.items():
            try:
                status = process.status()
            except psutil.NoSuchProcess:
                status = psutil.STATUS_DEAD
            if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
                if stopped_alone:
                    continue
                return f"{name} (process {process.pid}) died"
            if status != psutil.STATUS_STOPPED:
                self._stopped.pop(name, None)
                continue
            since = self._stopped.setdefault(name, time.monotonic())
            if (seconds := time.monotonic() - since) >= patience_s:
                return f"{name} (process {process.pid}) has been stopped for {seconds:.0f} s"
        return None


def status(pid: int, began: float) -> str:
    """What psutil says of a process that began then."""
    try:
        process = _process(pid, began)
        return str(process.status()) if process else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


def end_tree(pid: int, began: float) -> None:
    """End a process that began then, and all of its children, also where they are stopped."""
    try:
        process = _process(pid, began)
        family = [process, *process.children(recursive=True)] if process else []
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _process(pid: int, began: float) -> psutil.Process | None:
    """The process with this number, if it is the one that began then, and not another that was given its number."""
    process = psutil.Process(pid)
    return process if process.create_time() == began else None
