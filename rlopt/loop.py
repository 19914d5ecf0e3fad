"""The algorithm, as one page of verbs. No Ray, no engine: the same loop runs on a cluster and in a test with fakes.

while a step is left:
    ask for every batch that the engines' version may sample      -> samplers run ahead
    take the next batch, learn from it                            -> the learner follows
    at the end of a window, send the weights and check them       -> both meet
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlopt.batching import make_batch, pad
from rlopt.data import Deal
from rlopt.errors import RloptError
from rlopt.metrics import batch_metrics
from rlopt.objectives.core import Objective
from rlopt.schedule import Schedule
from rlopt.types import Batch, Group, Prompt, Sample


class Rollouts(Protocol):
    """The samplers. Documented in `rollout.Rollouts`."""

    def request(self, batch: int, deals: list[Deal]) -> None: ...
    def take(self, batch: int) -> list[Group]: ...
    def drain(self) -> dict[int, list[Group]]: ...
    def canary(self, prompts: list[Prompt]) -> list[list[Sample]]: ...
    def busy_s(self) -> float: ...


class SentLike(Protocol):
    """What a synchronisation cost."""

    @property
    def bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Learners(Protocol):
    """The learner ranks. Documented in `learner.Learners`."""

    def update(self, batch: Batch, step: int) -> dict[str, float]: ...
    def score(self, batch: Batch) -> Tensor: ...
    def sync(self, version: int) -> SentLike: ...


class Journal(Protocol):
    """Where a run is written down. Documented in `tracking.Journal`."""

    def step(self, metrics: Mapping[str, float], groups: list[Group]) -> None: ...
    def event(self, kind: str, **facts: object) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know of the config."""

    total_steps: int
    save_every: int
    samples_per_step: int
    verify: bool
    tolerance: float


@dataclass
class Position:
    """Where a run stands; with a checkpoint's weights and buffer it is all that a resumed run needs."""

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0


@dataclass(frozen=True)
class Loop:
    """The parts, wired by `launch`, and the page that moves them."""

    plan: Plan
    schedule: Schedule
    objective: Objective
    deal: Callable[[int], list[Deal]]
    canaries: list[Prompt]
    rollouts: Rollouts
    learners: Learners
    journal: Journal
    save: Callable[[Position, dict[int, list[Group]]], None]

    def run(self, position: Position, sampled: int) -> None:
        """Train from `position` to the last step; `sampled` is the last batch that exists already."""
        engines, requested = position.step, sampled
        self.synchronise(engines)
        window_started, window_busy = time.monotonic(), self.rollouts.busy_s()
        while position.step < self.plan.total_steps:
            step, started = position.step + 1, time.monotonic()
            last = self.schedule.last_batch(position.step - position.step % self.schedule.interval)
            while requested < min(last, self.plan.total_steps):
                requested += 1
                self._check_engines(requested, engines)
                self.rollouts.request(requested, self.deal(requested))

            groups = self.rollouts.take(step)
            taken = time.monotonic()
            self._check_samples(step, groups)
            batch = make_batch(groups, self.objective, step)
            metrics = batch_metrics(groups, step, self.plan.samples_per_step) | self.learners.update(batch, step)
            updated, tokens = time.monotonic(), int(batch.mask.sum())
            position.step = step
            position.samples_seen += len(batch)
            position.tokens_seen += tokens

            if self.schedule.syncs_after(step) and step < self.plan.total_steps:
                self.rollouts.drain()
                busy = self.rollouts.busy_s()
                metrics["idle/rollout_frac"] = 1 - (busy - window_busy) / (time.monotonic() - window_started)
                metrics |= self.synchronise(step)
                engines, window_started, window_busy = step, time.monotonic(), busy

            wall = time.monotonic() - started
            metrics |= {
                "step": step,
                "samples_seen": position.samples_seen,
                "tokens_seen": position.tokens_seen,
                "timing_s/step": wall,
                "timing_s/wait_rollout": taken - started,
                "timing_s/update": updated - taken,
                "perf/tokens_per_s": tokens / wall,
                "perf/samples_per_s": len(batch) / wall,
                "idle/learner_frac": 1 - (updated - taken) / wall,
            }
            self.journal.step(metrics, groups)
            if step == self.plan.total_steps or (self.plan.save_every and step % self.plan.save_every == 0):
                self.save(position, self.rollouts.drain())

    def synchronise(self, version: int) -> dict[str, float]:
        """Bring the engines to `version`, and prove it on prompts that both sides score."""
        started = time.monotonic()
        sent = self.learners.sync(version)
        metrics: dict[str, float] = {"sync/seconds": sent.seconds, "sync/bytes": sent.bytes}
        if self.plan.verify:
            gap = self._canary_gap(version)
            metrics |= {"sync/canary_abs_diff": gap, "sync/verified": float(gap <= self.plan.tolerance)}
        metrics["timing_s/sync"] = time.monotonic() - started
        self.journal.event("sync", version=version, **metrics)
        if metrics.get("sync/verified") == 0:
            raise RloptError(
                f"sync of version {version}: engine and learner differ by {metrics['sync/canary_abs_diff']:.2e} nats on a "
                f"canary token, sync.tolerance allows {self.plan.tolerance:.0e}; the weights did not arrive as they were sent"
            )
        return metrics

    def _canary_gap(self, version: int) -> float:
        """The largest difference of a canary token's log-probability between any engine and the learner, in nats."""
        gap = 0.0
        for engine, answers in enumerate(self.rollouts.canary(self.canaries)):
            stale = [sample.version for sample in answers if sample.version != version]
            if stale:
                raise RloptError(f"sync of version {version}: engine {engine} still answers with version {stale[0]}")
            batch = pad(list(zip(self.canaries, answers, strict=True)))
            difference = (self.learners.score(batch) - batch.behavior).abs() * batch.mask
            gap = max(gap, difference.max().item())
        return gap

    def _check_engines(self, batch: int, engines: int) -> None:
        """Refuse to sample a batch with weights that the schedule does not name."""
        if engines != self.schedule.version(batch):
            raise RloptError(
                f"batch {batch} is to be sampled by version {self.schedule.version(batch)}, and the engines hold {engines}; "
                f"a finished run can be extended only from a step that is a multiple of sync.interval={self.schedule.interval}"
            )

    def _check_samples(self, step: int, groups: list[Group]) -> None:
        """Off-policyness is a promise: a sample of another version than the schedule's ends the run."""
        expected = self.schedule.version(step)
        for group in groups:
            for sample in group.samples:
                if (sample.versions != expected).any():
                    raise RloptError(
                        f"step {step}: a sample of prompt {group.prompt.id} was spoken by versions "
                        f"{sorted(set(sample.versions.tolist()))}, the schedule says {expected}"
                    )
