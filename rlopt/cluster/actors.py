"""Ray actors of plain classes: calling them, and waiting for them with a deadline and a name."""

import os
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlopt.cluster.watch import Watch, end_tree, status
from rlopt.core.errors import RloptError, first_line

GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.NodeDiedError,
)
"""What Ray raises when a worker, its node or an answer of it is gone."""

CHECK_S = 1.0
"""Seconds between two looks at who is waited for."""

ASK_S = 5.0
"""Seconds between two questions after a process of another node."""

AFTERMATH_S = 5.0
"""Seconds in which Ray tells of a death that another rank has noticed by its connection."""


class Stalled(RloptError):
    """A deadline passed or a worker died: who waited for whom, and for how long."""

    def __init__(self, said: str, who: str = "", waited_s: float = 0.0) -> None:
        """`who` was waited for, this many seconds."""
        super().__init__(said)
        self.who, self.waited_s = who, waited_s


class Lost(Stalled):
    """A worker died."""


class ClusterLost(RloptError):
    """Ray itself died, with all workers."""


@dataclass(eq=False)
class Pending:
    """Calls under way on some workers, one each. `check` raises Lost or ClusterLost for what Ray does not tell of."""

    refs: list[Any]
    who: str
    deadline_s: float
    check: Callable[[], None] = lambda: None
    answer: Future[Any] | None = None  # of the one call, once an `Inbox` watches it

    def result(self, what: str) -> list[Any]:
        """Wait for the results, in the order of the workers.

        Raises:
            Stalled: not all came in time.
            Lost: a worker died, or is stopped.
            ClusterLost: Ray is gone.
            RloptError: a worker refused.
        """
        started = time.monotonic()
        try:
            return [self.answer.result()] if self.answer else self._all(what, started)
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(cause, RloptError):
                raise RloptError(str(cause.args[0] if cause.args else cause)) from error
            ray.wait(self.refs, num_returns=len(self.refs), timeout=AFTERMATH_S)
            if died := self._died():
                raise Lost(f"{died} died during: {what}", self.who, time.monotonic() - started) from error
            raise
        except GONE as error:
            self.check()
            died = self._died() or self.who
            raise Lost(f"{died} died during: {what} ({first_line(error)})", self.who, time.monotonic() - started) from error

    def _all(self, what: str, started: float) -> list[Any]:
        answers, waiting = dict[Any, Any](), list(self.refs)
        self.check()  # also where no wait is long: without GCS Ray would end this process after a minute
        while waiting:
            left = started + self.deadline_s - time.monotonic()
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, min(left, CHECK_S)))
            answers |= {ref: ray.get(ref) for ref in ready}  # raises for one that died, while the others wait for it
            if waiting and left <= 0:
                late = [name for name, ref in zip(_names(self.who, len(self.refs)), self.refs, strict=True) if ref in waiting]
                waited = time.monotonic() - started
                raise Stalled(
                    f"the driver waited {waited:.0f} s for {', '.join(late)}: {what} "
                    "(cluster.start_deadline_s, cluster.step_deadline_s)",
                    self.who,
                    waited,
                )
            if waiting:
                self.check()
        return [answers[ref] for ref in self.refs]

    def _died(self) -> str | None:
        """The first worker that Ray says is gone."""
        ready, _ = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
        for name, ref in zip(_names(self.who, len(self.refs)), self.refs, strict=True):
            try:
                if ref in ready:
                    ray.get(ref)
            except GONE:
                return name
            except ray.exceptions.RayError:
                continue
        return None

    def cancel(self) -> None:
        """Ask the workers to stop; the results are not wanted any more."""
        for ref in self.refs:
            ray.cancel(ref)


def finished(pending: list[Pending]) -> list[Pending]:
    """Those of `pending`, of one call each, that have finished, with or without an error."""
    if not pending:
        return []
    ready, _ = ray.wait([one.refs[0] for one in pending], num_returns=len(pending), timeout=0)
    known = set(ready)
    return [one for one in pending if one.refs[0] in known]


def _names(who: str, count: int) -> list[str]:
    """Of each of several workers, in an error."""
    return [who] if count == 1 else [f"{who}[{i}]" for i in range(count)]


class Inbox:
    """Calls whose answers have come, with or without an error. Those still under way cost nothing."""

    def __init__(self) -> None:
        self._arrived: SimpleQueue[int] = SimpleQueue()
        self._watched: dict[int, Pending] = {}
        self._numbers = count()

    def watch(self, pending: Pending) -> None:
        """Have `take` return `pending`, of one call, when it has answered."""
        number = next(self._numbers)
        self._watched[number] = pending
        pending.answer = pending.refs[0].future()
        # A callback that held `pending` would keep it in a circle, and with it an answer that lies in the object store.
        pending.answer.add_done_callback(lambda _: self._arrived.put(number))

    def take(self, timeout_s: float = 0.0) -> list[Pending]:
        """Those that have answered since the last call; waits up to `timeout_s` seconds for a first one."""
        arrived = list[int]()
        with suppress(Empty):
            arrived.append(self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait())
            while True:
                arrived.append(self._arrived.get_nowait())
        return [self._watched.pop(number) for number in arrived]


class Workers:
    """Copies of one plain class, each in a Ray actor of its own."""

    def __init__(self, who: str, handles: list[Any], deadline_s: float, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises ClusterLost when Ray is gone."""
        self.who, self.handles, self._deadline_s, self._check = who, handles, deadline_s, check
        self._places = [handle.__ray_call__.remote(_place) for handle in handles]  # their first call
        self._watch: Watch | None = None

    def __len__(self) -> int:
        return len(self.handles)

    def start(self, method: str, *each: Iterable[Any], deadline_s: float | None = None) -> Pending:
        """Call `method` on every worker without waiting; `each` are the positional arguments of one worker after another."""
        arguments = [tuple(a) for a in each] or [()] * len(self.handles)
        refs = [getattr(handle, method).remote(*a) for handle, a in zip(self.handles, arguments, strict=True)]
        return Pending(refs, self.who, deadline_s or self._deadline_s, self.check)

    def call(self, method: str, *each: Iterable[Any]) -> list[Any]:
        """Call `method` on every worker and wait for all."""
        return self.start(method, *each).result(method)

    def nodes(self) -> list[str]:
        """The Ray node that each of them runs on."""
        return [place.node for place in Pending(self._places, self.who, self._deadline_s, self.check).result("starting")]

    def check(self) -> None:
        """Raise Lost if a worker was stopped, ClusterLost if Ray is gone."""
        self._check()
        if self._watch is None:
            places = self._known()
            if len(places) < len(self.handles):
                return
            here, named = own_node(), zip(_names(self.who, len(places)), places, strict=True)
            with suppress(psutil.NoSuchProcess):  # Ray tells of it
                self._watch = Watch({n: psutil.Process(p.pid) if p.node == here else _Distant(p) for n, p in named})
        if self._watch and (fault := self._watch.fault(stopped_alone=True)):
            raise Lost(fault, self.who)

    def kill(self) -> None:
        """End every worker and all of its children at once, also where they are stopped."""
        for handle in self.handles:
            ray.kill(handle)
        here = own_node()
        for place in self._known():
            if place.node == here:
                end_tree(place.pid, place.began)
            else:
                place.have(end_tree)

    def _known(self) -> list["_Place"]:
        """Where those run that have said so."""
        ready, _ = ray.wait(self._places, num_returns=len(self._places), timeout=0)
        places = []
        for ref in ready:
            with suppress(ray.exceptions.RayError):  # it is gone
                places.append(ray.get(ref))
        return places

    def close(self) -> None:
        """Ask every worker to close, give it a few seconds, and end it either way."""
        close_all([self])


def close_all(several: Iterable[Workers]) -> None:
    """Close all of these at once."""
    all_of_them = list(several)
    if refs := [handle.close.remote() for workers in all_of_them for handle in workers.handles]:
        ray.wait(refs, num_returns=len(refs), timeout=5)
    for workers in all_of_them:
        workers.kill()


@dataclass(frozen=True)
class _Place:
    """Where a worker runs; `began` as psutil has it."""

    node: str
    pid: int
    began: float

    def have(self, function: Callable[[int, float], Any]) -> Any:
        """Call `function` of the process on its node; the reference of the answer."""
        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        return ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(self.pid, self.began)


class _Distant:
    """A process of another node, for a `Watch`: it is as a task there last said, which is asked every few seconds."""

    def __init__(self, place: _Place) -> None:
        self.pid, self._place = place.pid, place
        self._said, self._answer, self._asked_at = psutil.STATUS_RUNNING, None, -ASK_S

    def status(self) -> str:
        """Without waiting for the answer."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # Ray tells of a node that is gone
                self._said = ray.get(self._answer)
            self._answer = None
        if self._answer is None and time.monotonic() - self._asked_at >= ASK_S:
            self._answer, self._asked_at = self._place.have(status), time.monotonic()
        return self._said


def _place(_: object) -> _Place:
    return _Place(own_node(), os.getpid(), psutil.Process().create_time())


def own_node() -> str:
    """The Ray node of this process."""
    return str(ray.get_runtime_context().get_node_id())


def node_id(_: object) -> str:
    """`own_node`, as something that an actor is asked to call."""
    return own_node()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def own_address() -> str:
    """The address under which this process's node is known to the cluster."""
    return str(get_node_ip_address())
