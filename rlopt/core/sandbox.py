"""The user's functions run in separate processes with a deadline, so that they may hang, leak or crash."""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import Any, Literal

from rlopt.core.errors import RloptError
from rlopt.core.killable import START_DEADLINE_S, Killable, StartMethod, Tail, said_of
from rlopt.core.user_code import Function, load

SHOWN = 2000
"""How many characters of a function's arguments an error shows."""


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
        self._closed, self._changing = False, Lock()  # a worker is not started again once all are ended
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
    """A process that calls the function, for one caller at a time."""

    def __init__(self, make: Callable[[], Function], start_method: StartMethod) -> None:
        self._make, self._start_method = make, start_method
        self.start()

    def start(self) -> None:
        self._process = Killable(_serve, self._make, self._start_method)
        self._ready = False

    def ask(self, call: Any, timeout_s: float) -> object:
        if not self._ready:  # importing the function is not part of its first call
            self._receive(START_DEADLINE_S)
            self._ready = True
        self._process.pipe.send(vars(call))  # not the dataclass: a child need not import where it comes from
        return self._receive(timeout_s)

    @property
    def stopped(self) -> bool:
        return self._process.stopped

    def end(self) -> None:
        self._process.end()

    def kill(self) -> None:
        self._process.kill()

    def _receive(self, timeout_s: float) -> object:
        if not self._process.pipe.poll(timeout_s):
            raise TimeoutError
        answer: dict[str, Any] = json.loads(self._process.pipe.recv_bytes())  # never a pickle: the user's code wrote it
        return Failed(**answer["failed"]) if "failed" in answer else answer["answer"]


def _serve(make: Callable[[], Function], pipe: Connection) -> None:
    function, mine = make(), os.getpid()
    _send(pipe, "ready")
    while True:
        try:
            call: dict[str, Any] = pipe.recv()
        except EOFError:
            return
        printed = Tail()
        try:
            try:
                with redirect_stdout(printed), redirect_stderr(printed):
                    answer = function(**call)
            finally:
                if os.getpid() != mine:  # the function forked: one of both answers
                    os._exit(0)
            _send(pipe, answer)
        except Exception as error:  # whatever user code raises is reported by name in the parent
            why = said_of(error, printed.text)
            pipe.send_bytes(json.dumps({"failed": {"kind": "raised", "why": why}}).encode())


def _send(pipe: Connection, answer: object) -> None:
    """As JSON, with scalars of numpy and torch as numbers."""
    pipe.send_bytes(json.dumps({"answer": answer}, default=lambda value: value.item()).encode())


def _shown(call: object) -> str:
    text = repr(call)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
