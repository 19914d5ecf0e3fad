"""Live data: samplers kept in sync with the learner every N steps, running ahead of it in between. No Ray, no engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rlopt.batching import pad, pad_samples
from rlopt.data import Deal
from rlopt.errors import RloptError
from rlopt.loop import Drawn, Journal
from rlopt.metrics import batch_metrics
from rlopt.schedule import Schedule
from rlopt.types import Group, Prompt, Sample, Sequences


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
    """The learner ranks, as far as samplers need them. Documented in `learner.Learners`."""

    def score(self, sequences: Sequences, whose: Literal["policy", "reference"]) -> Tensor: ...
    def sync(self, version: int) -> SentLike: ...


@dataclass(frozen=True)
class LivePlan:
    """What the samplers' side needs to know of the config; `tolerance` in nats, for the canary."""

    total_steps: int
    samples_per_step: int
    verify: bool
    tolerance: float


@dataclass
class Live:
    """The samplers as a `loop.Source`. Every batch is asked for as soon as the engines hold the version that may sample it.

    `requested` is the last batch that was asked for, here or before the run was interrupted.
    """

    plan: LivePlan
    schedule: Schedule
    deal: Callable[[int], list[Deal]]
    canaries: list[Prompt]
    rollouts: Rollouts
    learners: Learners
    journal: Journal
    requested: int

    def open(self, step: int) -> None:
        self._synchronise(step)
        self._window_started, self._window_busy = time.monotonic(), self.rollouts.busy_s()

    def take(self, step: int) -> Drawn:
        last = self.schedule.last_batch(step - 1 - (step - 1) % self.schedule.interval)
        while self.requested < min(last, self.plan.total_steps):
            self.requested += 1
            self._check_engines(self.requested)
            self.rollouts.request(self.requested, self.deal(self.requested))
        groups = self.rollouts.take(step)
        self._check_samples(step, groups)
        sequences = pad(groups, step)
        metrics = batch_metrics(groups, step, self.plan.samples_per_step)
        return Drawn(sequences, lambda: self.learners.score(sequences, "reference"), metrics, groups)

    def learned(self, step: int) -> dict[str, float]:
        if not self.schedule.syncs_after(step):
            return {}
        self.rollouts.drain()
        busy, now = self.rollouts.busy_s(), time.monotonic()
        idle = 1 - (busy - self._window_busy) / (now - self._window_started)
        metrics = {"idle/rollout_frac": idle} | self._synchronise(step)
        self._window_started, self._window_busy = time.monotonic(), busy
        return metrics

    def measure(self, step: int) -> dict[str, float]:
        return {}

    def buffer(self) -> dict[int, list[Group]]:
        return self.rollouts.drain()

    def _synchronise(self, version: int) -> dict[str, float]:
        """Bring the engines to `version`, and prove it on prompts that both sides score."""
        started = time.monotonic()
        sent = self.learners.sync(version)
        self._engines = version
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
            asked = pad_samples(list(zip(self.canaries, answers, strict=True)))
            difference = (self.learners.score(asked, "policy") - asked.behavior).abs() * asked.mask
            gap = max(gap, difference.max().item())
        return gap

    def _check_engines(self, batch: int) -> None:
        """Refuse to sample a batch with weights that the schedule does not name."""
        if self._engines != self.schedule.version(batch):
            raise RloptError(
                f"batch {batch} is to be sampled by version {self.schedule.version(batch)}, and the engines hold "
                f"{self._engines}; a finished run can be extended only from a step that is a multiple of "
                f"sync.interval={self.schedule.interval}"
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
