"""Asynchronous sampling: samplers never stop, weights reach them in flight, and a batch is made of finished groups.

Every group must be learned from while its lag is at most `max_lag`. A prompt is requested only while all that is
being sampled can still be learned from in time, the oldest first. If a group is late, either the learner waits for it
(`stale=wait`) or the group is dropped and counted (`stale=drop`). No Ray, no engine.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rlopt.core.errors import NoEngine, RloptError
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Group, Key, PendingRollouts
from rlopt.orchestrator.decisions import Decision, Decisions
from rlopt.orchestrator.lockstep import Engines, restore_engines
from rlopt.weight_sync.synchronizer import Synchronizer


@dataclass(frozen=True)
class AsyncPlan:
    """The settings of asynchronous sampling; `ahead` is the most groups that are being sampled at a time."""

    per_step: int
    total_steps: int
    interval: int
    max_lag: int
    stale: Literal["wait", "drop"]
    ahead: int
    deadline_s: float


@dataclass(frozen=True)
class Under:
    """The state of a resumed run's sampler: the number of its next prompt, finished groups, and open requests."""

    next: int
    done: Mapping[Key, Group]
    under_way: list[int]


def streamed(pending: PendingRollouts) -> Under:
    """The state that `AsyncSampler.pending` saved; without any, the beginning."""
    facts = pending.facts.get("stream", {"keys": [], "again": [], "next": 0})
    keys = [(version, number) for version, number in facts["keys"]]
    return Under(facts["next"], dict(zip(keys, pending.sections.get("stream", []), strict=True)), facts["again"])


def after(under: Under, decisions: Iterable[Decision]) -> Under:
    """The state without the prompts of steps that were decided after it was saved."""
    used = {number for one in decisions for number in [*one.dropped, *(number for _, number in one.keys)]}
    following = max([under.next, *(number + 1 for number in used)])
    again = {*under.under_way, *range(under.next, following)} - used
    return Under(following, {key: group for key, group in under.done.items() if key[1] not in used}, sorted(again))


@dataclass
class AsyncSampler:
    """Prompts one after another, each with a number; a key is (version at the time of the request, number).

    `next` is the number of the next prompt. `again` are prompts that were being sampled when the run was interrupted.
    `decisions` is where batches are written down; those that it has already are taken from there.
    """

    plan: AsyncPlan
    request_of: Callable[[int], SampleRequest]
    engines: Engines
    sync: Synchronizer
    next: int
    again: list[int]
    decisions: Decisions | None = None
    finished: list[int] = field(default_factory=list)
    dropped: int = 0
    _counted: set[Key] = field(default_factory=set)
    _given_up: list[int] = field(default_factory=list)

    def open(self, step: int) -> None:
        self.sync.to(step)
        self.engines.idle_frac()

    def take(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """The oldest finished groups, once there are enough and the others can still be in time; or what was decided before."""
        self.engines.poll()
        if self._ahead and self._ahead[0].step == step:
            decided = self._ahead.popleft()
            self.ask(step + 1)
            return decided.groups, dict(decided.metrics)
        self._drop_late(step)
        while True:
            self.ask(step)
            ready = sorted(self.engines.done)
            self._count(ready)
            chosen = ready[: self.plan.per_step]
            if len(chosen) == self.plan.per_step and (self.plan.stale == "drop" or self._others_in_time(chosen, step)):
                break
            self._wait(step - 1)
        groups = [self.engines.take(key) for key in chosen]
        self._counted -= {*chosen}
        self._check(step, groups)
        self.ask(step + 1)
        metrics = self._metrics(groups)
        if self.decisions:
            self.decisions.add(Decision(step, chosen, self._given_up, groups, metrics))
        self._given_up = []
        return groups, metrics

    @property
    def _ahead(self) -> deque[Decision]:
        """What was decided for the next steps."""
        return self.decisions.ahead if self.decisions else deque()

    def learned(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if step % self.plan.interval == 0:
            metrics = {"idle/rollout_frac": self.engines.idle_frac()} | self.sync.to(step)
        self.ask(step + 1)
        return metrics

    def pending(self, step: int) -> PendingRollouts:
        """The finished groups, and the numbers of the prompts that are being sampled; does not wait for them."""
        decided = [pair for one in self._ahead for pair in zip(one.keys, one.groups, strict=True)]
        done = sorted([*self.engines.done.items(), *decided], key=lambda pair: pair[0])
        under_way = [number for version, number in self.engines.asked if (version, number) not in self.engines.done]
        facts = {"keys": [list(key) for key, _ in done], "again": sorted(under_way + self.again), "next": self.next}
        return PendingRollouts({"stream": [group for _, group in done]}, {"stream": facts})

    def ask(self, step: int) -> None:
        """Request prompts while what is requested now can be learned from in time, at learner step `step` or later."""
        step = max([step, *(one.step + 1 for one in self._ahead)])
        plan, version = self.plan, self.sync.version
        left = (plan.total_steps - step + 1) * plan.per_step
        while True:
            done = len(self.engines.done)
            asked = self.engines.in_flight + done
            # More than a step's would only be older when its turn comes.
            enough = self.engines.in_flight >= plan.ahead or done >= plan.per_step
            if asked >= left or enough or self._due(version) < step + asked // plan.per_step:
                return
            number = self.again.pop(0) if self.again else self.next
            self.next = max(self.next, number + 1)
            self.engines.ask((version, number), self.request_of(number))

    def _due(self, version: int) -> int:
        """The last learner step that may learn from a group that was requested with `version`."""
        return version + self.plan.max_lag + 1

    def _others_in_time(self, chosen: list[Key], step: int) -> bool:
        """Whether all but `chosen`, which are for learner step `step`, can be learned from in time after it, oldest first."""
        rest = sorted({*self.engines.asked} - {*chosen})
        return all(self._due(version) >= step + 1 + i // self.plan.per_step for i, (version, _) in enumerate(rest))

    def _drop_late(self, step: int) -> None:
        """Drop the groups that are too old to be learned from at `step`."""
        for version, number in self.engines.asked:
            if self._due(version) < step:
                self.engines.cancel((version, number))
                self._counted.discard((version, number))
                self._given_up.append(number)
                self.dropped += 1

    def _wait(self, step: int) -> None:
        try:
            self.engines.wait(self.plan.deadline_s)
        except NoEngine:
            restore_engines(self.engines, self.sync, step)

    def _count(self, ready: list[Key]) -> None:
        """Collect the lengths of all samples that have come back, whether or not they are learned from."""
        for key in {*ready} - self._counted:
            self.finished += [sample.sampled for sample in self.engines.done[key].samples]
            self._counted.add(key)

    def _check(self, step: int, groups: list[Group]) -> None:
        """Raise if a sample is older than the bound."""
        for group in groups:
            for sample in group.samples:
                if step - 1 - sample.version > self.plan.max_lag:
                    raise RloptError(
                        f"step {step}: a sample of prompt {group.prompt.id} has lag {step - 1 - sample.version}, "
                        f"sync.max_lag={self.plan.max_lag}"
                    )

    def _metrics(self, groups: list[Group]) -> dict[str, float]:
        lengths = [sample.sampled for group in groups for sample in group.samples]
        finished, self.finished = self.finished or lengths, []
        dropped, self.dropped = self.dropped, 0
        if not lengths:  # none of its samples has a reward
            return {"offpolicy/dropped_groups": float(dropped)}
        return {
            "response_length/p90": float(np.quantile(lengths, 0.9)),
            "response_length/finished_mean": float(np.mean(finished)),
            "response_length/finished_p90": float(np.quantile(finished, 0.9)),
            "offpolicy/dropped_groups": float(dropped),
        }
