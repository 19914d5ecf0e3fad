"""Groups as a `loop.Source`: new, replayed and recorded ones, in the shares that the config names. No Ray, no engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rlopt.core.protocols import Learners
from rlopt.core.samples import Group, PendingRollouts
from rlopt.data.collate import tabulate
from rlopt.orchestrator.loop import StepData
from rlopt.orchestrator.replay_buffer import ReplayBuffer
from rlopt.tracking.metrics import batch_metrics
from rlopt.weight_sync.synchronizer import Synchronizer


class Samplers(Protocol):
    """Where new groups come from: `LockstepSampler` or `AsyncSampler`."""

    @property
    def sync(self) -> Synchronizer:
        """Of the engines."""
        ...

    def open(self, step: int) -> None:
        """Bring the engines to the weights of `step`."""
        ...

    def ask(self, step: int) -> None:
        """Request everything that may be sampled now, for `step` and later."""
        ...

    def take(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Wait for the new groups of `step`; and metrics of them."""
        ...

    def learned(self, step: int) -> dict[str, float]:
        """Called after `step`, if another follows: synchronize if it is due. Returns metrics of that."""
        ...

    def pending(self, step: int) -> PendingRollouts:
        """Groups that were sampled and not taken by `step`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """When held-out prompts are answered: at the synchronization that ends or follows `every` steps, and after the last step.

    `interval` is that of synchronizations; `measure` does it.
    """

    every: int
    interval: int
    total_steps: int
    measure: Callable[[Callable[[], None]], dict[str, float]]


@dataclass(frozen=True)
class Shares:
    """The number of groups of a step by origin, and the samples of a group."""

    new: int
    replayed: int
    recorded: int
    group_size: int


@dataclass(frozen=True)
class OnlineSource:
    """The groups of a step. `samplers`, `replay` and `recorded` (groups by number and count) may each be missing."""

    shares: Shares
    samplers: Samplers | None
    replay: ReplayBuffer | None
    recorded: Callable[[int, int], list[Group]] | None
    learners: Learners
    evaluation: Evaluation | None

    def open(self, step: int) -> None:
        if self.samplers:
            self.samplers.open(step)

    def take(self, step: int) -> StepData:
        shares, metrics = self.shares, dict[str, float]()
        groups = list[Group]()
        if self.samplers:
            groups, metrics = self.samplers.take(step)
        if self.replay:
            again = self.replay.draw(step, shares.replayed)
            self.replay.insert(groups)
            groups = groups + again
            metrics |= self.replay.metrics()
        if self.recorded:
            kept = self.recorded((step - 1) * shares.recorded, shares.recorded)
            groups = groups + kept
        sequences = tabulate(groups, step)
        metrics = batch_metrics(groups, step, asked_for(groups, shares.new, shares.group_size)) | metrics
        return StepData(sequences, lambda: self.learners.score_reference(sequences), metrics, groups)

    def learned(self, step: int) -> dict[str, float]:
        return self.samplers.learned(step) if self.samplers else {}

    def measure(self, step: int) -> dict[str, float]:
        """Evaluate if it is due and the engines hold the weights of this very step; the samplers continue meanwhile."""
        if not (self.evaluation and self.samplers):
            return {}
        plan, samplers, sync, metrics = self.evaluation, self.samplers, self.samplers.sync, dict[str, float]()
        if step == plan.total_steps:
            metrics = sync.to(step)
        elif sync.version != step or step // plan.every == (step - plan.interval) // plan.every:
            return {}
        began = time.monotonic()
        return metrics | plan.measure(lambda: samplers.ask(step + 1)) | {"timing_s/eval": time.monotonic() - began}

    def pending(self, step: int) -> PendingRollouts:
        pending = self.samplers.pending(step) if self.samplers else PendingRollouts({}, {})
        return pending.joined(self.replay.pending()) if self.replay else pending


def asked_for(groups: list[Group], new: int, group_size: int) -> int:
    """The samples that were asked for, of groups of which the first `new` are new."""
    return new * group_size + sum(len(group.samples) for group in groups[new:])
