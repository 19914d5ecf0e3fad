"""The user's functions run in separate processes with a deadline, so that they may hang, leak or crash."""

import ctypes
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Literal

import psutil

from rlopt.core.errors import RloptError
from rlopt.core.user_code import Function, load

StartMethod = Literal["spawn", "forkserver"]
"""How multiprocessing starts a process: anew, or as a fork of a server that has imported most of what it needs."""

START_DEADLINE_S = 120.0
"""Seconds that a process may take to import its function."""

PRINTED, SHOWN = 200, 2000
"""How many characters of a function's output, and of its arguments, an error shows."""


@dataclass(frozen=True)
class Failed:
    """Why a call has no answer: it took too long, its process died, or it raised (or gave what cannot be sent back)."""

    kind: Literal["timeout", "died", "raised"]
    why: str


class Pool:
    """`workers` processes that call a function. A call that takes over `timeout_s` seconds is killed with its process and its
    children. One whose process died, or was stopped from outside, is made again, once.

    A call is a dataclass: its fields are the function's keyword arguments, and errors show it. All three of the user's
    functions (reward, split, locate) keep to `reward.timeout_s`. What they print goes into errors alone.
    """

    def __init__(
        self,
        key: str,
        name: str,
        workers: int,
        timeout_s: float,
        make: Callable[[], Function] | None = None,
        start_method: StartMethod = "spawn",
    ) -> None:
        """`make` returns the function, in a child process, where that takes more than an import."""
        make = make or partial(load, key, name)
        make()  # a wrong name is refused here rather than in a child
        self._where, self._timeout_s = f"{key}={name}", timeout_s
        self._closed, self._changing = False, threading.Lock()  # a worker is not started again once all are ended
        self._workers = [_Worker(make, start_method) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=key)

    def call(self, calls: Sequence[Any]) -> list[object]:
        """What the function returned for each call, in order; one process makes them all. Blocks.

        Raises:
            RloptError: the function raised, overran or died.
        """
        return [self._answer(call, one) for call, one in zip(calls, self.attempt(calls), strict=True)]

    def call_each(self, calls: Sequence[Any]) -> list[object]:
        """As `call`, but spread over all processes."""
        waiting = [self._threads.submit(self._attempt, [one]) for one in calls]
        return [self._answer(call, done.result()[0]) for call, done in zip(calls, waiting, strict=True)]

    def attempt(self, calls: Sequence[Any]) -> list[object]:
        """As `call`, but a call without an answer gives a `Failed` that says why, and the other calls are still made."""
        return self._threads.submit(self._attempt, calls).result()

    def explain(self, call: object, failed: Failed) -> str:
        """One line: the setting, what happened, and the arguments."""
        return f"{self._where} {failed.why} on {_shown(call)}"

    def close(self) -> None:
        """End at once; a call under way is not waited for."""
        with self._changing:
            self._closed = True
            for worker in self._workers:
                worker.end()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown()  # whoever waited for one of them has seen it end
        for worker in self._workers:
            worker.kill()

    def _answer(self, call: object, answer: object) -> object:
        if isinstance(answer, Failed):
            raise RloptError(self.explain(call, answer))
        return answer

    def _attempt(self, calls: Sequence[Any]) -> list[object]:
        worker = self._idle.get()
        try:
            return [self._one(worker, call) for call in calls]
        finally:
            self._idle.put(worker)

    def _one(self, worker: "_Worker", call: Any) -> object:
        answer = self._once(worker, call)
        if isinstance(answer, _Lost) and not self._closed:
            # Perhaps it was somebody else's hand. If it is the call's, it happens again.
            answer = self._once(worker, call)
        return answer.failed if isinstance(answer, _Lost) else answer

    def _once(self, worker: "_Worker", call: Any) -> object:
        if self._closed:
            return Failed("died", "was closed")
        try:
            return worker.ask(call, self._timeout_s)
        except (TimeoutError, EOFError, OSError) as error:
            stopped = worker.stopped
            with self._changing:
                worker.kill()
                if not self._closed:
                    worker.start()
            if isinstance(error, TimeoutError):
                late = Failed("timeout", f"took over reward.timeout_s={self._timeout_s}")
                return _Lost(late) if stopped else late
            return _Lost(Failed("died", "died"))


@dataclass(frozen=True)
class _Lost:
    """A process that died or was stopped in a call, and what the call has to show for it."""

    failed: Failed


class _Worker:
    def __init__(self, make: Callable[[], Function], start_method: StartMethod) -> None:
        self._make, self._start_method = make, start_method
        self.start()

    def start(self) -> None:
        context: Any = multiprocessing.get_context(self._start_method)
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._make, child), daemon=True)
        self._process.start()
        self._ready = False
        child.close()

    def ask(self, call: Any, timeout_s: float) -> object:
        if not self._ready:  # importing the function is not part of its first call
            self._receive(START_DEADLINE_S)
            self._ready = True
        self._pipe.send(vars(call))  # not the dataclass: a child need not import where it comes from
        return self._receive(timeout_s)

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped its process, with a signal."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        return False

    def end(self) -> None:
        """Kill it and all that it started; a waiting caller gets an EOFError."""
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
        self.end()
        self._process.join()
        self._pipe.close()

    def _receive(self, timeout_s: float) -> object:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())  # never a pickle: the user's code wrote it
        return Failed(**answer["failed"]) if "failed" in answer else answer["answer"]


def _kill(process: psutil.Process) -> bool:
    """Kill a process; whether it was alive."""
    with suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            return True
    return False


def _adopt_orphans() -> None:
    """Become the parent of every process whose parent ended and that this one started, in whatever session it is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


PR_SET_CHILD_SUBREAPER = 36


def _serve(make: Callable[[], Function], pipe: Connection) -> None:
    os.setsid()  # its own process group, to be killed as one; Ctrl-C, which reaches the whole terminal, is ignored
    _adopt_orphans()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # functions may start processes
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, mine = make(), os.getpid()
    _send(pipe, "ready")
    while True:
        try:
            call: dict[str, Any] = pipe.recv()
        except EOFError:
            return
        printed = _Tail()
        try:
            try:
                with redirect_stdout(printed), redirect_stderr(printed):
                    answer = function(**call)
            finally:
                if os.getpid() != mine:  # the function forked: one of both answers
                    os._exit(0)
            _send(pipe, answer)
        except Exception as error:  # whatever user code raises is reported by name in the parent
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"; before that it printed {printed.text!r}" if printed.text else ""
            why = f"raised {type(error).__name__}: {error} ({where.filename}:{where.lineno}){said}"
            pipe.send_bytes(json.dumps({"failed": {"kind": "raised", "why": why}}).encode())


def _send(pipe: Connection, answer: object) -> None:
    """As JSON, with scalars of numpy and torch as numbers."""
    pipe.send_bytes(json.dumps({"answer": answer}, default=lambda value: value.item()).encode())


class _Tail(io.TextIOBase):
    """Keeps the last characters of what is written."""

    text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text[-PRINTED:])[-PRINTED:]
        return len(text)


def _shown(call: object) -> str:
    text = repr(call)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def _end_with_parent() -> None:
    """Exit when the parent is gone: it cannot kill this process, and a hanging function would not see the pipe close."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        for child in psutil.Process().children(recursive=True):
            _kill(child)
        os.killpg(0, signal.SIGKILL)
