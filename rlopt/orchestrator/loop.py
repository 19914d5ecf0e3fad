"""The training loop. No Ray and no engine: the same loop runs on a cluster and in a test with fakes.

while a step is left:
    take the data of the step                            -> from samplers that run ahead, or from recorded rows
    score it with the reference where KL is measured, and with the policy where old log-probabilities are the policy's
    compute advantages, update the weights
    tell the source that the weights have changed        -> where samplers are synchronized
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rlopt.core.errors import Interrupted, StoppedEarly
from rlopt.core.protocols import Journal, Learners
from rlopt.core.samples import Group, PendingRollouts
from rlopt.core.table import SequenceTable, Update
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.credit import compute_advantages
from rlopt.orchestrator.progress import Position, StepClock, step_metrics


@dataclass(frozen=True, eq=False)
class StepData:
    """The data of one step.

    Attributes:
        sequences: what is learned from, `B` of them, the longest with `T` tokens.
        reference: returns the reference's log-probabilities `[B, T]`, computed now or earlier.
        metrics: of the data.
        groups: samples to be shown to people; none where rows are recorded.
    """

    sequences: SequenceTable
    reference: Callable[[], Tensor]
    metrics: Mapping[str, float]
    groups: list[Group]


class Source(Protocol):
    """Where the data of a step comes from: `OnlineSource` or `RecordedSource`."""

    def open(self, step: int) -> None:
        """Prepare to continue after `step`."""
        ...

    def take(self, step: int) -> StepData:
        """The data of `step`; waits for it. Raises Interrupted if the run is asked to end meanwhile."""
        ...

    def learned(self, step: int) -> dict[str, float]:
        """Called after `step`, if another follows: synchronize if it is due. Returns metrics of that."""
        ...

    def measure(self, step: int) -> dict[str, float]:
        """Score held-out rows if it is due. Returns metrics of that."""
        ...

    def pending(self, step: int) -> PendingRollouts:
        """Groups that are still needed after `step`, to be kept with a checkpoint."""
        ...


@dataclass(frozen=True)
class Plan:
    """The settings of the loop. `old_logprobs` and `minibatches` as in `conf/algo/_group_relative.yaml`.

    `reference_every`: steps from one use of the reference to the next; 0: it is never needed.
    """

    total_steps: int
    save_every: int
    record: bool
    old_logprobs: Literal["behavior", "proximal"]
    minibatches: int
    reference_every: int


@dataclass(frozen=True)
class Loop:
    """The parts of a run, put together by `run.wiring`, and the algorithm."""

    plan: Plan
    objective: Objective
    terms: LossTerms
    source: Source
    learners: Learners
    journal: Journal
    save: Callable[[Position, PendingRollouts], bool]  # whether it could
    asked_to_save: Callable[[Mapping[str, float]], bool]
    asked_to_stop: Callable[[], bool]
    stepped: Callable[[], None]

    def run(self, position: Position) -> None:
        """Train from `position` to the last step, or until asked to stop; what was made is saved.

        Raises:
            StoppedEarly: it was asked to stop before the last step.
        """
        saved = position.step
        self.source.open(position.step)
        while position.step < self.plan.total_steps:
            clock = StepClock()
            try:
                data = self.source.take(position.step + 1)
            except Interrupted:
                if position.step > saved:
                    self._save(position)
                raise StoppedEarly from None
            clock.lap("wait_rollout")

            policy, updates = self.scored(data, position.step + 1)
            clock.lap("score")
            updated = self.learners.update(updates, position.step + 1)
            clock.lap("update")

            position.advance(updates, len(data.sequences))
            metrics = {**data.metrics, **updated, **self._between_steps(position.step)}
            metrics |= step_metrics(position, updates, len(data.sequences), clock)
            self.journal.step(metrics, data.groups, policy)
            stop = self.asked_to_stop()
            self.stepped()
            if (self.asked_to_save(metrics) or self._is_due(position.step) or stop) and self._save(position):
                saved = position.step
            if stop and position.step < self.plan.total_steps:
                raise StoppedEarly

    def scored(self, data: StepData, step: int) -> tuple[Tensor | None, list[Update]]:
        """`_policy_logprobs`, and what each update of learner step `step` learns from."""
        policy = self._policy_logprobs(data.sequences)
        old_logprobs = policy if self.plan.old_logprobs == "proximal" else None
        measured = self.plan.reference_every > 0 and step % self.plan.reference_every == 0
        reference = data.reference() if measured else None
        return policy, compute_advantages(
            data.sequences, old_logprobs, reference, self.objective, self.terms, self.plan.minibatches
        )

    def _policy_logprobs(self, sequences: SequenceTable) -> Tensor | None:
        """`[B, T]` under the policy before the update, where `algo.old_logprobs` or the record needs it."""
        wanted = self.plan.old_logprobs == "proximal" or self.plan.record
        return self.learners.score_policy(sequences) if wanted else None

    def _between_steps(self, step: int) -> dict[str, float]:
        """Synchronize and evaluate if it is due; metrics of that."""
        metrics: dict[str, float] = {}
        with suppress(Interrupted):  # the step itself is complete
            if step < self.plan.total_steps:
                metrics |= self.source.learned(step)
            metrics |= self.source.measure(step)
        return metrics

    def _save(self, position: Position) -> bool:
        return self.save(position, self.source.pending(position.step))

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step` whatever happens."""
        every = self.plan.save_every
        return step == self.plan.total_steps or (every > 0 and step % every == 0)
