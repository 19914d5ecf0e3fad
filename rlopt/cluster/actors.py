"""Ray: start or join a cluster, make plain classes remote, and wait for them with a deadline and a name."""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlopt.cluster import fork_server
from rlopt.cluster.placement import Demand, shortage
from rlopt.config.sections import ClusterConfig
from rlopt.core.errors import RloptError, first_line

GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.NodeDiedError,
)
"""What Ray raises when a worker, its node or an answer of it is gone."""

ANY = -1
"""A place in what was reserved: any that has room."""


class Stalled(RloptError):
    """A deadline passed or a worker died: who waited for whom, and for how long."""


class Lost(Stalled):
    """A worker died."""


@dataclass(eq=False)
class Pending:
    """Calls under way on some workers, one each."""

    refs: list[Any]
    who: str
    deadline_s: float
    answer: Future[Any] | None = None  # of the one call, once an `Inbox` watches it

    def result(self, what: str) -> list[Any]:
        """Wait for the results, in the order of the workers.

        Raises:
            Stalled: not all came in time.
            Lost: a worker died.
            RloptError: a worker refused.
        """
        started = time.monotonic()
        try:
            return [self.answer.result()] if self.answer else list(ray.get(self.refs, timeout=self.deadline_s))
        except ray.exceptions.GetTimeoutError:
            ready, _ = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
            names = [self.who] if len(self.refs) == 1 else [f"{self.who}[{i}]" for i in range(len(self.refs))]
            late = [name for name, ref in zip(names, self.refs, strict=True) if ref not in ready]
            waited = time.monotonic() - started
            raise Stalled(
                f"the driver waited {waited:.0f} s for {', '.join(late)}: {what} "
                "(cluster.start_deadline_s, cluster.step_deadline_s)"
            ) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(cause, RloptError):
                raise RloptError(str(cause.args[0] if cause.args else cause)) from error
            raise
        except GONE as error:
            raise Lost(f"{self.who} died during: {what} ({first_line(error)})") from error

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


class Inbox:
    """Calls whose answers have come, with or without an error. Those still under way cost nothing."""

    def __init__(self) -> None:
        self._arrived: SimpleQueue[Pending] = SimpleQueue()

    def watch(self, pending: Pending) -> None:
        """Have `take` return `pending`, of one call, when it has answered."""
        pending.answer = pending.refs[0].future()
        pending.answer.add_done_callback(lambda _: self._arrived.put(pending))

    def take(self, timeout_s: float = 0.0) -> list[Pending]:
        """Those that have answered since the last call; waits up to `timeout_s` seconds for a first one."""
        arrived = list[Pending]()
        with suppress(Empty):
            arrived.append(self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait())
            while True:
                arrived.append(self._arrived.get_nowait())
        return arrived


class Workers:
    """Copies of one plain class, each in a Ray actor of its own."""

    def __init__(self, who: str, handles: list[Any], deadline_s: float) -> None:
        self.who, self.handles, self._deadline_s = who, handles, deadline_s

    def __len__(self) -> int:
        return len(self.handles)

    def start(self, method: str, *each: Iterable[Any], deadline_s: float | None = None) -> Pending:
        """Call `method` on every worker without waiting; `each` are the positional arguments of one worker after another."""
        arguments = [tuple(a) for a in each] or [()] * len(self.handles)
        refs = [getattr(handle, method).remote(*a) for handle, a in zip(self.handles, arguments, strict=True)]
        return Pending(refs, self.who, deadline_s or self._deadline_s)

    def call(self, method: str, *each: Iterable[Any]) -> list[Any]:
        """Call `method` on every worker and wait for all."""
        return self.start(method, *each).result(method)

    def nodes(self) -> list[str]:
        """The Ray node that each of them runs on."""
        return list(ray.get([handle.__ray_call__.remote(node_id) for handle in self.handles], timeout=self._deadline_s))

    def close(self) -> None:
        """Ask every worker to close, give it a few seconds, and end it either way."""
        close_all([self])


def close_all(several: Iterable[Workers]) -> None:
    """Close all of these at once."""
    handles = [handle for workers in several for handle in workers.handles]
    if refs := [handle.close.remote() for handle in handles]:
        ray.wait(refs, num_returns=len(refs), timeout=5)
    for handle in handles:
        ray.kill(handle)


_LEAN = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
"""No idle workers: each would import Ray twice, and all of ours are actors with an environment of their own."""


@cache
def _start_few_processes() -> None:
    """Leave out what Ray starts beside a cluster: autoscaler, log monitor and dashboard. Nothing here asks one of them; each
    imports for a second of CPU time.
    """
    params = partial(ray._private.parameter.RayParams, no_monitor=True, include_log_monitor=False)
    ray._private.parameter.RayParams = params
    ray._private.services.start_api_server = lambda *_, **__: ("", None)


class Cluster:
    """A Ray cluster: one of our own on this machine, or one that runs already."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config, self._placed, self._engines = config, 0, 0
        self._demand: Demand | None = None  # this and the next by reserve
        self._reserved: Any = None
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "rlopt"}
        if config.address == "local":
            _start_few_processes()
            # Ray replaces a loopback address by the machine's own and then listens on every interface; here it may not.
            ray._private.services.resolve_ip_for_localhost = lambda address: address
            # Signals that end a job reach our whole process group. In their own session Ray's processes, and the workers
            # that they start, go on until the driver has saved and ends them.
            ray._private.services.ConsolePopen = partial(subprocess.Popen, start_new_session=True)
            if fork_server.ADDRESS in os.environ:
                ray._private.ray_constants.SETUP_WORKER_FILENAME = fork_server.CLIENT
            try:
                ray.init(address="local", _node_ip_address="127.0.0.1", _system_config=_LEAN, **common)
            except Exception as error:  # Ray raises a bare Exception when its processes do not come up in 30 s
                reason = first_line(error)
                raise Stalled(f"cluster.address=local: Ray did not start ({reason}); is the machine overloaded?") from error
        else:
            host, colon, port = config.address.rpartition(":")
            try:
                if colon and "//" not in host:  # Ray itself would wait for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=config.address, **common)
            except (OSError, ValueError) as error:
                reason = first_line(error)
                raise RloptError(
                    f"cluster.address={config.address}: no Ray cluster answers ({reason}); use local, or start one"
                ) from error
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place, which leaves no time to close workers

    def reserve(self, demand: Demand) -> None:
        """Take the GPUs of the learner ranks on as few nodes as possible; where engines share them, those of the pairs.

        Raises:
            RloptError: the cluster can never have room for all workers.
            Stalled: others use its GPUs, and gave none back before the deadline.
        """
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = {f"{node['NodeManagerHostname']} {node['NodeID'][:6]}": node["Resources"].get("GPU", 0.0) for node in nodes}
        if short := shortage(demand, here):
            raise RloptError(f"cluster.address={self._config.address}: {short}; ask for less, or add nodes")
        self._demand = demand
        if not demand.bundles:
            return
        self._reserved = ray.util.placement_group(demand.bundles, strategy="PACK")
        if not self._reserved.wait(self._config.start_deadline_s):
            free = ray.available_resources().get("GPU", 0.0)
            raise Stalled(
                f"cluster.start_deadline_s={self._config.start_deadline_s:g}: {len(demand.bundles)} GPU(s) for learner ranks "
                f"were not free in time, {free:g} are; end what uses them, or wait longer"
            )

    def learners(self, cls: type, env: dict[str, str], *each: Iterable[Any]) -> Workers:
        """As `workers`, on what was reserved."""
        assert self._demand, "reserve comes first"
        places = range(len(each)) if self._reserved else None
        return self.workers("learner", cls, self._demand.gpus_per_learner, env, *each, places=places)

    def engines(self, who: str, cls: type, env: dict[str, str], *each: Iterable[Any]) -> Workers:
        """As `workers`, on the GPUs that `reserve` was told of.

        Where engines share cards with learner ranks, the first ones have a card each, and one that comes later has that of one
        that is gone.
        """
        demand = self._demand
        assert demand, "reserve comes first"
        numbers = range(self._engines, self._engines + len(each))
        self._engines += len(each)
        places = [number if number < demand.engines else ANY for number in numbers] if demand.shared else None
        return self.workers(who, cls, demand.gpus_per_engine, env, *each, places=places)

    def workers(
        self,
        who: str,
        cls: type,
        gpus: float,
        env: dict[str, str],
        *each: Iterable[Any],
        places: Iterable[int] | None = None,
    ) -> Workers:
        """Actors of `cls`, spread over the nodes; `each` are the constructor's arguments of one after another.

        CPU threads are a matter of `env`, not of Ray's resources: two workers may share a core on a laptop.

        Args:
            places: of each, in what was reserved.
        """
        remote = ray.remote(cls)
        common: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus, "runtime_env": {"env_vars": env}, "max_restarts": 0}
        ways = [self._place(gpus) for _ in each] if places is None else [self._on(place) for place in places]
        made = [remote.options(**common, scheduling_strategy=way) for way in ways]
        handles = [actor.remote(*arguments) for actor, arguments in zip(made, each, strict=True)]
        return Workers(who, handles, self._config.step_deadline_s)

    def _on(self, place: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._reserved, placement_group_bundle_index=place)

    def _place(self, gpus: float) -> Any:
        """Where the next actor is placed if nothing is reserved for it: spread over the nodes."""
        if gpus:
            return "SPREAD"
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        self._placed += 1
        return NodeAffinitySchedulingStrategy(nodes[self._placed % len(nodes)], soft=False)

    def close(self) -> None:
        ray.shutdown()


def node_id(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def own_address() -> str:
    """The address under which this process's node is known to the cluster."""
    return str(get_node_ip_address())
