"""The algorithm, as one page of verbs. No Ray, no engine: the same loop runs on a cluster and in a test with fakes.

while a step is left:
    take what the source has for it                      -> samplers that run ahead, or recorded rows
    score it with the reference, and with the policy where an anchor is wanted
    give credit, learn
    tell the source that the weights have moved          -> where samplers are synchronised
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rlopt.core.batches import Sequences
from rlopt.core.errors import Interrupted
from rlopt.core.protocols import Journal, Learners
from rlopt.core.samples import Group, PendingRollouts
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.credit import compute_advantages


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a source has for one step.

    Attributes:
        sequences: what is learned from.
        reference: scores them with the initial model, `[B, T]`, or remembers it.
        metrics: of the data.
        groups: samples to be shown to people; none where rows are recorded.
    """

    sequences: Sequences
    reference: Callable[[], Tensor]
    metrics: Mapping[str, float]
    groups: list[Group]


class Source(Protocol):
    """Where the data of a step comes from: `live.Live` or `recorded.Recorded`."""

    def open(self, step: int) -> None:
        """Get ready to go on after `step`."""
        ...

    def take(self, step: int) -> Drawn:
        """The data of `step`; waits for it. Raises Interrupted where the run is to end meanwhile."""
        ...

    def learned(self, step: int) -> dict[str, float]:
        """`step` was learned from, and another follows: synchronise where it is time to. Metrics of that."""
        ...

    def measure(self, step: int) -> dict[str, float]:
        """Score held-out rows where it is time to. Metrics of that."""
        ...

    def pending(self, step: int) -> PendingRollouts:
        """What is there after `step` and was not learned from for the last time, to be kept with a checkpoint."""
        ...


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know of the config. `anchor` and `minibatches` as in `conf/algo/_group_relative.yaml`."""

    total_steps: int
    save_every: int
    record: bool
    anchor: Literal["behavior", "proximal"]
    minibatches: int


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
    objective: Objective
    terms: LossTerms
    source: Source
    learners: Learners
    journal: Journal
    save: Callable[[Position, PendingRollouts], None]
    is_best: Callable[[Mapping[str, float]], bool]
    asked_to_stop: Callable[[], bool]

    def run(self, position: Position) -> None:
        """Train from `position` to the last step, or until asked to stop; what was made is saved."""
        plan, saved = self.plan, position.step
        self.source.open(position.step)
        while position.step < plan.total_steps:
            step, started = position.step + 1, time.monotonic()
            try:
                drawn = self.source.take(step)
            except Interrupted:
                if position.step > saved:
                    self.save(position, self.source.pending(position.step))
                return
            taken, sequences = time.monotonic(), drawn.sequences
            proximal = plan.anchor == "proximal"
            policy = self.learners.score_policy(sequences) if proximal or plan.record else None
            old_logprobs = policy if policy is not None and proximal else sequences.rollout_logprobs
            batches = compute_advantages(
                sequences, old_logprobs, drawn.reference(), self.objective, self.terms, plan.minibatches
            )
            credited = time.monotonic()
            metrics = {**drawn.metrics, **self.learners.update(batches, step)}
            updated, tokens = time.monotonic(), sum(int(batch.mask.sum()) for batch in batches)

            position.step = step
            position.samples_seen += len(sequences)
            position.tokens_seen += tokens
            with suppress(Interrupted):  # the step was made all the same
                if step < plan.total_steps:
                    metrics |= self.source.learned(step)
                metrics |= self.source.measure(step)

            wall = time.monotonic() - started
            metrics |= {
                "step": step,
                "actor/updates": len(batches),
                "samples_seen": position.samples_seen,
                "tokens_seen": position.tokens_seen,
                "timing_s/step": wall,
                "timing_s/wait_rollout": taken - started,
                "timing_s/score": credited - taken,
                "timing_s/update": updated - credited,
                "perf/tokens_per_s": tokens / wall,
                "perf/samples_per_s": len(sequences) / wall,
                "idle/learner_frac": 1 - (updated - taken) / wall,
            }
            self.journal.step(metrics, drawn.groups, policy)
            due = step == plan.total_steps or (plan.save_every and step % plan.save_every == 0)
            stop = self.asked_to_stop()
            if self.is_best(metrics) or due or stop:
                self.save(position, self.source.pending(step))
                saved = step
            if stop:
                return
