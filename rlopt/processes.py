"""Functions of the user's, run in processes of their own with a deadline, so that they can hang, leak or crash alone."""

import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from rlopt.errors import RloptError


def load(key: str, name: str, kind: str = "function") -> Callable[..., object]:
    """The function (or class, as `kind` says) that `name`, the value of the setting `key`, stands for: `module:function`.

    Raises:
        RloptError: it cannot be imported, or is none.
    """
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise RloptError(f"{key}={name}: cannot be imported ({type(error).__name__}: {error}); want module:{kind}") from error
    if not colon or not callable(function):
        raise RloptError(f"{key}={name}: no {kind}; want module:{kind}")
    return function  # type: ignore[no-any-return]


class Pool:
    """`workers` processes that make lists of calls; a list that takes over `timeout_s` seconds kills its process.

    A call is a dataclass: its fields are the function's keyword arguments, and errors show it. All three of the user's
    functions (reward, split, locate) keep to `reward.timeout_s`.
    """

    def __init__(self, key: str, name: str, workers: int, timeout_s: float) -> None:
        load(key, name)  # a wrong name is refused here rather than in a child
        self._key, self._name, self._timeout_s = key, name, timeout_s
        self._closed = False
        self._workers = [_Worker(key, name) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=key)

    def call(self, calls: Sequence[Any]) -> list[object]:
        """What the function returned for each call, in order; one process makes them all. Blocks.

        Raises:
            RloptError: the function raised, overran or died.
        """
        return self._threads.submit(self._call, calls).result()

    def call_each(self, calls: Sequence[Any]) -> list[object]:
        """As `call`, but every call has the deadline for itself, and all processes share in them."""
        waiting = [self._threads.submit(self._call, [one]) for one in calls]
        return [done.result()[0] for done in waiting]

    def close(self) -> None:
        """End at once; a call under way is not waited for."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown()  # whoever waited for one of them has seen it end
        for worker in self._workers:
            worker.kill()

    def _call(self, calls: Sequence[Any]) -> list[object]:
        worker = self._idle.get()
        try:
            answers = worker.ask(calls, self._timeout_s)
        except (TimeoutError, EOFError, OSError) as error:
            worker.kill()
            if not self._closed:
                worker.start()
            what = f"took over reward.timeout_s={self._timeout_s}" if isinstance(error, TimeoutError) else "died"
            on = f"{len(calls)} completions like " if len(calls) > 1 else ""
            raise RloptError(f"{self._key}={self._name} {what} on {on}{calls[0]!r}") from None
        finally:
            self._idle.put(worker)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, RloptError):
                raise RloptError(f"{self._key}={self._name} raised on {call!r}: {answer}")
        return answers


class _Worker:
    def __init__(self, key: str, name: str) -> None:
        self._key, self._name = key, name
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._key, self._name, child), daemon=True)
        self._process.start()
        child.close()

    def ask(self, calls: Sequence[Any], timeout_s: float) -> list[object]:
        self._pipe.send([vars(call) for call in calls])  # not the dataclasses: a child need not import where they come from
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        answers: list[object] = self._pipe.recv()
        return answers

    def end(self) -> None:
        """Whoever waits for an answer gets an EOFError."""
        self._process.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(key: str, name: str, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; whoever asked decides when we end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function = load(key, name)
    while True:
        try:
            calls: list[dict[str, Any]] = pipe.recv()
        except EOFError:
            return
        answers: list[object] = []
        for call in calls:
            try:
                answers.append(function(**call))
            except Exception as error:  # whatever user code raises is reported by name in the parent
                where = traceback.extract_tb(error.__traceback__)[-1]
                answers.append(RloptError(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"))
        pipe.send(answers)


def _end_with_parent() -> None:
    """A killed parent cannot kill us, and a function that hangs would not see the pipe close."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
