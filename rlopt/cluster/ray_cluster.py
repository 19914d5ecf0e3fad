"""A Ray cluster: one of our own on this machine, or one that runs already. It makes plain classes remote."""

import os
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlopt.cluster.actors import CHECK_S, ClusterLost, Stalled, Workers
from rlopt.cluster.own_ray import COMMON, OwnRay
from rlopt.cluster.placement import Demand, shortage
from rlopt.config.sections import ClusterConfig
from rlopt.core.errors import RloptError, first_line

ANY = -1
"""A place in what was reserved: any that has room."""

HEAD_S = 30.0
"""Seconds without an answer after which the head of a joined cluster is taken for dead."""


class Cluster:
    """A Ray cluster: one of our own on this machine, or one that runs already."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config, self._placed, self._engines = config, 0, 0
        self._demand: Demand | None = None  # this and the next by reserve
        self._reserved: Any = None
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray prints what it thinks of a worker's death, twenty lines of log; rlopt says it in one.
        ray._private.worker.listen_error_messages = lambda *_, **__: None
        on_sigterm = signal.getsignal(signal.SIGTERM)
        self._own: OwnRay | None = None
        if config.address == "local":
            try:
                self._own = OwnRay()
            except Exception as error:  # Ray raises a bare Exception when its processes do not come up in 30 s
                reason = first_line(error)
                raise Stalled(f"cluster.address=local: Ray did not start ({reason}); is the machine overloaded?") from error
        else:
            host, colon, port = config.address.rpartition(":")
            try:
                if colon and "//" not in host:  # Ray itself would wait for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=config.address, **COMMON)
            except (OSError, ValueError) as error:
                reason = first_line(error)
                raise RloptError(
                    f"cluster.address={config.address}: no Ray cluster answers ({reason}); use local, or start one"
                ) from error
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place, which leaves no time to close workers
        self._checked = self._heard = time.monotonic()
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why nothing more is to be expected of the cluster, or None. Looks at most once a second."""
        if time.monotonic() - self._checked > CHECK_S:
            self._checked, self._fault = time.monotonic(), self._look()
        return self._fault

    def _look(self) -> str | None:
        if self._own:
            return self._own.fault()
        if time.monotonic() - self._heard < HEAD_S / 3:
            return None
        try:  # without its head Ray would go on for a minute and then end this process
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=HEAD_S / 3).close()
            self._heard = time.monotonic()
        except OSError as error:
            silent = time.monotonic() - self._heard
            if silent > HEAD_S:
                return f"Ray's head at {self._config.address} has not answered for {silent:.0f} s ({first_line(error)})"
        return None

    def check(self) -> None:
        """Raise ClusterLost if Ray itself is gone."""
        if fault := self.fault:
            raise ClusterLost(fault)

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
        return Workers(who, handles, self._config.step_deadline_s, self.check)

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
        """Leave the cluster, and end one of our own."""
        if self._own:
            self._own.end()
        else:
            ray.shutdown()
