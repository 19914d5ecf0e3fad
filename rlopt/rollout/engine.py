"""One engine, as the pool knows it: its open requests, and whether it works on them."""

import time
from dataclasses import dataclass, field
from typing import Literal

from rlopt.cluster.actors import ClusterLost, Lost, Pending, Stalled, Workers, finished
from rlopt.core.errors import RloptError, last_line
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Key

LOOKS = 4
"""How often it is looked, in the time that an engine may be silent."""


@dataclass
class Engine:
    """Its signs of life are groups that come back, and else steps that its model makes, asked for now and then.

    The question goes through the engine's own loop: a process which lives and computes nothing does not answer.
    """

    number: int
    workers: Workers
    calls: dict[Pending, tuple[Key, SampleRequest]] = field(default_factory=dict)
    busy_s: float = 0.0  # when that was last read, at `asked_at`
    asked_at: float = 0.0
    asleep: bool = False
    given_up: str = ""  # why it was ended, where that was not the pool
    _seen: float = field(default_factory=time.monotonic)
    _looked: float = field(default_factory=time.monotonic)
    _asked: Pending | None = None
    _steps: int = -1

    def alive(self) -> None:
        """It showed that it works."""
        self._seen = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since its last sign of life."""
        return time.monotonic() - self._seen

    def idle_share(self, pending: Pending) -> list[float]:
        """Share of the time since the last call in which it had no request, as it answers; none at the first call."""
        busy_s, now = pending.result("telling how long it was busy")[0], time.monotonic()
        shares = [1 - (busy_s - self.busy_s) / (now - self.asked_at)] if self.asked_at else []
        self.busy_s, self.asked_at = busy_s, now
        return shares

    def told(self, verb: Literal["sleep", "wake"], pending: Pending) -> None:
        """Wait until it sleeps, or is awake.

        Raises:
            RloptError: the learner left too little of the card.
        """
        try:
            pending.result("sleeping" if verb == "sleep" else "waking up")
        except (Stalled, ClusterLost):
            raise
        except Exception as error:  # CUDA's own
            why = last_line(error)
            raise RloptError(f"engine {self.number} could not {verb} ({why}); lower rollout.gpu_memory_share") from error
        self.asleep = verb == "sleep"

    def trouble(self, stall_s: float, receives: bool = False) -> str | None:
        """Why it is to be given up, or None; called often while it has requests, or `receives` weights.

        Raises:
            ClusterLost: Ray itself is gone.
        """
        try:
            self.workers.check()
            silent_s = self._look(stall_s, bool(self.calls) or receives)
        except Lost as lost:
            return str(lost)
        if silent_s <= stall_s:
            return None
        had = f"engine {self.number} had {len(self.calls)} request(s)"
        return f"{had} and computed nothing for {silent_s:.0f} s (rollout.stall_s)"

    def _look(self, stall_s: float, has_work: bool) -> float:
        """Seconds for which it has had work and shown no sign of life."""
        now = time.monotonic()
        if now - self._looked > stall_s / 2 or not has_work:  # nobody looked, or there was nothing to see
            self._seen, self._asked = now, None
        self._looked = now
        if self._asked is None:
            if has_work and now - self._seen > stall_s / LOOKS:
                self._asked = self.workers.start("progress")
        elif finished([self._asked]):
            computing, steps = self._asked.result("telling what it computed")[0]
            if not computing or steps != self._steps:
                self._seen = now
            self._steps, self._asked = steps, None
        return now - self._seen
