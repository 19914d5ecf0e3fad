"""The progress of a run, and the counts, times and rates of a step."""

import time
from dataclasses import dataclass

from rlopt.core.table import Update


@dataclass
class Position:
    """The progress of a run. With a checkpoint's weights and buffer it is all that a resumed run needs."""

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0

    def advance(self, updates: list[Update], samples: int) -> None:
        """Count a step of these updates, made of `samples` samples."""
        self.step += 1
        self.samples_seen += samples
        self.tokens_seen += tokens_of(updates)


class StepClock:
    """Seconds of a step, part by part."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Assign the time since the last lap to `name`."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now

    @property
    def step(self) -> float:
        return time.monotonic() - self._began


def tokens_of(updates: list[Update]) -> int:
    return sum(update.tokens for update in updates)


def step_metrics(position: Position, updates: list[Update], samples: int, clock: StepClock) -> dict[str, float]:
    """Counts, times and rates of the step that was made; `samples` of it."""
    wall = clock.step
    return {
        "step": position.step,
        "actor/updates": len(updates),
        "samples_seen": position.samples_seen,
        "tokens_seen": position.tokens_seen,
        "timing_s/step": wall,
        **{f"timing_s/{name}": seconds for name, seconds in clock.laps.items()},
        "perf/tokens_per_s": tokens_of(updates) / wall,
        "perf/samples_per_s": samples / wall,
        "idle/learner_frac": 1 - (clock.laps["score"] + clock.laps["update"]) / wall,
    }
