"""Samplers in lockstep with the learner: kept in sync every N steps, running ahead of it in between. No Ray, no engine."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from rlopt.core.errors import Interrupted, NoEngine, RloptError
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Group, Key, PendingRollouts
from rlopt.orchestrator.schedule import Schedule
from rlopt.weight_sync.synchronizer import Synchronizer

LINGER_S = 5.0
"""Seconds that a run which was asked to end waits for its samples: clusters give it 30 in all."""


class Engines(Protocol):
    """The engines, as samplers use them. Documented in `rollout.engine_pool.EnginePool`."""

    @property
    def asked(self) -> list[Key]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def done(self) -> Mapping[Key, Group]: ...
    def ask(self, key: Key, request: SampleRequest) -> None: ...
    def poll(self) -> None: ...
    def wait(self, deadline_s: float) -> None: ...
    def wait_idle(self, seconds: float) -> None: ...
    def take(self, key: Key) -> Group: ...
    def cancel(self, key: Key) -> None: ...
    def join_all(self) -> bool: ...
    def sleep(self) -> None: ...
    def idle_frac(self) -> float: ...


@dataclass
class LockstepSampler:
    """Every batch is requested as soon as the engines hold the version that may sample it, and taken in order.

    Attributes:
        requests_of: the requests of a batch.
        total_steps: batches in all.
        deadline_s: seconds without a single group before the run ends.
        sleep: have the engines sleep from their last sample to the next synchronization.
        requested: the last batch that was requested, in this process or before the run was interrupted.
        restored: versions that engines got off schedule, because none was left alive or the run was interrupted.
        again: keys that were requested and had not come back when the run was interrupted.
    """

    schedule: Schedule
    requests_of: Callable[[int], list[SampleRequest]]
    engines: Engines
    sync: Synchronizer
    total_steps: int
    deadline_s: float
    sleep: bool
    requested: int
    restored: set[int] = field(default_factory=set)
    again: list[Key] = field(default_factory=list)

    def open(self, step: int) -> None:
        self.sync.to(step)
        self.engines.idle_frac()
        if self.again:  # the weights that should sample it are gone; the same seeds draw from the current ones
            self.restored.add(step)
        for batch, place in self.again:
            self.engines.ask((batch, place), self.requests_of(batch)[place])
        self.again = []

    def ask(self, step: int) -> None:
        last = self.schedule.last_batch(step - 1 - (step - 1) % self.schedule.interval)
        while self.requested < min(last, self.total_steps):
            self.requested += 1
            self._check_engines(self.requested)
            for place, request in enumerate(self.requests_of(self.requested)):
                self.engines.ask((self.requested, place), request)

    def take(self, step: int) -> tuple[list[Group], dict[str, float]]:
        self.ask(step)
        keys = [key for key in self.engines.asked if key[0] == step]
        self._wait(self.engines.asked if self.sleep else keys, step - 1)
        if self.sleep:
            self.engines.sleep()
        groups = [self.engines.take(key) for key in keys]
        self._check_samples(step, groups)
        return groups, {}

    def learned(self, step: int) -> dict[str, float]:
        if not self.schedule.syncs_after(step):
            return {}
        self._wait(self.engines.asked, step)
        metrics = {"idle/rollout_frac": self.engines.idle_frac()} | self.sync.to(step)
        self.engines.idle_frac()
        return metrics

    def pending(self, step: int) -> PendingRollouts:
        """Batches that were sampled and not learned from. Waits for all requests; a run that was asked to end waits no
        longer than `LINGER_S`, and keeps the others as requests.
        """
        try:
            self._wait(self.engines.asked, step)
        except Interrupted:
            self.engines.wait_idle(LINGER_S)
        sections: dict[str, list[Group]] = {}
        for (batch, _), group in sorted(self.engines.done.items()):
            sections.setdefault(f"batch_{batch}", []).append(group)
        again = [list(key) for key in self.engines.asked if key not in self.engines.done]
        return PendingRollouts(sections, {"revived": sorted(self.restored), "again": again})

    def _wait(self, keys: list[Key], step: int) -> None:
        """Wait for groups. If all engines died, their replacements get the weights of learner step `step`."""
        while not all(key in self.engines.done for key in keys):
            try:
                self.engines.wait(self.deadline_s)
            except NoEngine:
                restore_engines(self.engines, self.sync, step)
                self.restored.add(step)

    def _check_engines(self, batch: int) -> None:
        """Raise if the engines hold another version than scheduled for a batch."""
        if self.sync.version != self.schedule.version(batch) and self.sync.version not in self.restored:
            raise RloptError(
                f"batch {batch} is to be sampled by version {self.schedule.version(batch)}, and the engines hold "
                f"{self.sync.version}; a finished run continues only from a multiple of sync.interval, and with sync.offset=0"
            )

    def _check_samples(self, step: int, groups: list[Group]) -> None:
        """Raise if a token was sampled by another version than scheduled."""
        expected = {self.schedule.version(step), *self.restored}
        for group in groups:
            for sample in group.samples:
                one = sample.version == sample.newest_version
                versions = {sample.version} if one else set(sample.versions[sample.action_mask].tolist())
                if not expected.issuperset(versions):
                    raise RloptError(
                        f"step {step}: a sample of prompt {group.prompt.id} was sampled by versions "
                        f"{sorted(versions)}, the schedule says {self.schedule.version(step)}"
                    )


def restore_engines(engines: Engines, sync: Synchronizer, step: int) -> None:
    """Wait for the engines that replace those that died, and give them the weights of learner step `step`."""
    if not engines.join_all():
        raise RloptError("groups are missing, no engine samples them, and none is being started: this is a bug in rlopt")
    sync.to(step)


def sampled_groups(sections: Mapping[str, list[Group]], again: Collection[Key] = ()) -> dict[Key, Group]:
    """The groups that `LockstepSampler.pending` saved, by key; `again` are the keys that were still being sampled."""
    found: dict[Key, Group] = {}
    for batch in batches_of(sections):
        places = (place for place in count() if (batch, place) not in again)
        found |= {(batch, place): group for place, group in zip(places, sections[f"batch_{batch}"], strict=False)}
    return found


def batches_of(sections: Iterable[str]) -> list[int]:
    """The batches in sections that `LockstepSampler.pending` named."""
    return [int(name.removeprefix("batch_")) for name in sections if name.startswith("batch_")]
