"""How the learner reaches the engines' actors."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from rlopt.cluster.actors import GONE, node_id, own_node
from rlopt.weight_sync.sender import difference


class EngineClient:
    """`sender.Client` for a learner: every verb goes to all engines and returns when all have done it.

    An engine that fails gets no further verb of that synchronization; `faults` says why, by its number. It stays paused, as
    the first verb left it, until a synchronization reaches it; those in `dead` are gone, or do not answer.
    """

    def __init__(self, engines: Mapping[int, Any], ranks_per_engine: int, deadline_s: float, stall_s: float) -> None:
        """`engines` are actor handles by number.

        Args:
            deadline_s: for the first verb, which may have to wait for responses to end, and for a whole model.
            stall_s: for each of the others.
        """
        self._engines, self._ranks, self._deadline_s = engines, ranks_per_engine, deadline_s
        self._stall_s = min(stall_s, deadline_s)
        self._here = own_node()
        self.version = 0
        self.faults: dict[int, str] = {}
        self.dead: set[int] = set()
        self._only = set(engines)
        self._nodes = self._all("__ray_call__", dict.fromkeys(engines, (node_id,)))

    def begin(self, version: int, only: Iterable[int] | None) -> None:
        """The next calls bring the engines, or those numbered in `only`, to `version`."""
        self.version, self.faults, self.dead = version, {}, set()
        self._only = set(self._engines) if only is None else set(only)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = {number: dict(init_info) for number in self._engines}
        for place, info in enumerate(infos.values()):
            if "rank_offset" in info:  # NCCL: rank 0 is the learner, then the ranks of one engine after another
                info["rank_offset"] = 1 + place * self._ranks
        self._all("init_weight_transfer_engine", {number: (info,) for number, info in infos.items()})

    def start_weight_update(self) -> None:
        self._all("start_weight_update", deadline_s=self._deadline_s)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if "path" not in update_info:  # the whole model at once
            self._all("update_weights", dict.fromkeys(self._engines, (update_info,)), self._deadline_s)
            return
        if all(node == self._here for node in self._nodes.values()):
            self._all("update_weights", dict.fromkeys(self._engines, (update_info,)))
            return
        import numpy as np

        data = ray.put(np.fromfile(update_info["path"], np.uint8))
        self._all(
            "update_weights_from",
            {number: (update_info, None if node == self._here else data) for number, node in self._nodes.items()},
        )

    def verify(self, manifest: Mapping[str, str]) -> None:
        """Compare what every engine received with what was sent; `manifest` is tensor name to digest."""
        for number, received in self._all("received").items():
            if wrong := difference(manifest, received):
                self.faults[number] = wrong

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", dict.fromkeys(self._engines, (weight_version or str(self.version),)))

    def blame(self, why: str) -> None:
        """Every engine that is meant and has no fault yet has this one."""
        for number in self._engines:
            if number in self._only:
                self.faults.setdefault(number, why)

    def _all(
        self, method: str, arguments: Mapping[int, tuple[Any, ...]] | None = None, deadline_s: float | None = None
    ) -> dict[int, Any]:
        """Call `method` on all chosen engines without faults; what each returned."""
        meant = [number for number in self._engines if number in self._only and number not in self.faults]
        refs = {n: getattr(self._engines[n], method).remote(*(arguments or {}).get(n, ())) for n in meant}
        deadline_s = deadline_s or self._stall_s
        ends = time.monotonic() + deadline_s
        answers = {}
        for number, ref in refs.items():
            try:
                answers[number] = ray.get(ref, timeout=max(0.0, ends - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                self.faults[number] = f"{method} took over {deadline_s:.0f} s (rollout.stall_s, cluster.step_deadline_s)"
                self.dead.add(number)
            except GONE:
                self.faults[number] = f"the engine died during {method}"
                self.dead.add(number)
            except ray.exceptions.RayTaskError as error:
                cause = error.as_instanceof_cause()
                self.faults[number] = f"{method}: {cause.args[0] if cause.args else cause}"
        return answers
