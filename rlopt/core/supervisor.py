"""What becomes of a run that loses something: one plain state machine, to which every loss is reported.

    an engine   -> replace it; where engines die one after another and nothing comes back, end
    a rank, Ray -> restart from the last checkpoint; where no new checkpoint follows several restarts, end
    the start   -> all engines died while they loaded: restart too
    the disk    -> pause saving, or end

A stall (nobody died, and a deadline passed) is restarted from once: what takes too long every time will not be quicker.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["replace", "restart", "pause", "end"]

Report = Callable[..., None]
"""`Journal.event`: the kind of event, and facts by name."""

MOST_LOSSES = 3
"""How many engines may die, beyond the number of engines, without a group coming back: then replacing does not help."""


@dataclass(frozen=True)
class Loss:
    """What was lost.

    Attributes:
        part: of the run.
        who: in the words of an error.
        why: one line.
        waited_s: seconds from its last sign of life until it was noticed.
        stalled: nobody died: a deadline passed.
    """

    part: Literal["engine", "start", "learner", "cluster", "disk"]
    who: str
    why: str
    waited_s: float
    stalled: bool = False


@dataclass
class Supervisor:
    """Counts, and decides.

    Attributes:
        engines: of the run.
        restarts: in a row, without a new checkpoint between them.
        pauses: whether a full disk pauses saving.
        report: writes an event.
    """

    engines: int = 1
    restarts: int = 0
    pauses: bool = False
    report: Report = lambda kind, **facts: None
    clock: Callable[[], float] = time.monotonic
    _engines_lost: int = field(default=0, init=False)
    _restarted: int = field(default=0, init=False)
    _stalled: bool = field(default=False, init=False)
    _down_since: float | None = field(default=None, init=False)

    def lost(self, loss: Loss, **facts: object) -> Verdict:
        """Decide what becomes of the run, and write it down with the facts."""
        verdict, left = self._decide(loss)
        self.report(
            f"{loss.part}_lost",
            who=loss.who,
            why=loss.why,
            detected_s=round(loss.waited_s, 1),
            verdict=verdict,
            tries_left=left,
            **facts,
        )
        return verdict

    def _decide(self, loss: Loss) -> tuple[Verdict, int]:
        """The verdict, and how many more such losses would be survived."""
        if loss.part == "engine":
            self._engines_lost += 1
            left = MOST_LOSSES + self.engines - self._engines_lost
            return ("replace", left) if left >= 0 else ("end", 0)
        if loss.part == "disk":
            return ("pause" if self.pauses else "end"), 0
        again = loss.stalled and self._stalled
        if self._restarted >= self.restarts or again:
            return "end", 0
        self._restarted += 1
        self._stalled = loss.stalled
        self._down_since = self.clock()
        return "restart", self.restarts - self._restarted

    def sampled(self) -> None:
        """A group came back: replacing engines helps."""
        self._engines_lost = 0

    def stepped(self) -> None:
        """A step was made."""
        if self._down_since is not None:
            self.report("recovered", seconds=round(self.clock() - self._down_since, 1))
            self._down_since = None

    def saved(self) -> None:
        """A new checkpoint was written: restarting helps."""
        self._restarted, self._stalled = 0, False


class Events:
    """Where the supervisor writes: the journal, and what happens while there is none is kept for the next."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, dict[str, object]]] = []
        self._write: Callable[..., None] | None = None

    def __call__(self, kind: str, **facts: object) -> None:
        if self._write:
            self._write(kind, **facts)
        else:
            self._kept.append((kind, {"at": round(time.time(), 3), **facts}))

    def to(self, write: Callable[..., None]) -> None:
        """From now on there is a journal."""
        self._write = write
        kept, self._kept = self._kept, []
        for kind, facts in kept:
            write(kind, **facts)

    def keep(self) -> None:
        """The journal is closed."""
        self._write = None
