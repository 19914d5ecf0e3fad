"""One engine, as the pool knows it: its open requests, and whether it works on them."""

import time
from dataclasses import dataclass, field

from rlopt.cluster.actors import Lost, Pending, Workers, finished
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

    def trouble(self, stall_s: float) -> str | None:
        """Why it is to be given up, or None; called often while it has work.

        Raises:
            ClusterLost: Ray itself is gone.
        """
        try:
            self.workers.check()
            silent_s = self._look(stall_s)
        except Lost as lost:
            return str(lost)
        if silent_s <= stall_s:
            return None
        had = f"engine {self.number} had {len(self.calls)} request(s)"
        return f"{had} and computed nothing for {silent_s:.0f} s (rollout.stall_s)"

    def _look(self, stall_s: float) -> float:
        """Seconds for which it has had work and shown no sign of life."""
        now = time.monotonic()
        if now - self._looked > stall_s / 2 or not self.calls:  # nobody looked, or there was nothing to see
            self._seen, self._asked = now, None
        self._looked = now
        if self._asked is None:
            if self.calls and now - self._seen > stall_s / LOOKS:
                self._asked = self.workers.start("progress")
        elif finished([self._asked]):
            computing, steps = self._asked.result("telling what it computed")[0]
            if not computing or steps != self._steps:
                self._seen = now
            self._steps, self._asked = steps, None
        return now - self._seen
