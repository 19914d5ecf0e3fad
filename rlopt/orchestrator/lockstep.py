"""Samplers in lockstep with the learner: kept in sync every N steps, running ahead of it in between. No Ray, no engine."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from rlopt.core.errors import Interrupted, NoEngine, RloptError
from rlopt.core.requests import Deal
from rlopt.core.samples import Group, Key, Stock
from rlopt.orchestrator.schedule import Schedule

LINGER_S = 5.0
"""Seconds that a run which is to end waits for its samples: clusters give it 30 in all."""


class Fleet(Protocol):
    """The engines, as samplers use them. Documented in `fleet.Fleet`."""

    @property
    def asked(self) -> list[Key]: ...
    @property
    def done(self) -> Mapping[Key, Group]: ...
    def ask(self, key: Key, deal: Deal) -> None: ...
    def poll(self) -> None: ...
    def wait(self, deadline_s: float) -> None: ...
    def linger(self, seconds: float) -> None: ...
    def hand_over(self, key: Key) -> Group: ...
    def cancel(self, key: Key) -> None: ...
    def join(self, wait: bool) -> bool: ...
    def sleep(self) -> None: ...
    def idle_frac(self) -> float: ...


class Synchroniser(Protocol):
    """Documented in `sync.Synchroniser`."""

    version: int

    def to(self, version: int) -> dict[str, float]: ...


@dataclass
class Lockstep:
    """Every batch is asked for as soon as the engines hold the version that may sample it, and taken in order.

    Attributes:
        deal: the prompts of a batch.
        total_steps: batches in all.
        deadline_s: seconds without a single group before the run ends.
        sleep: have the engines sleep from their last sample to the next synchronisation.
        requested: the last batch that was asked for, here or before the run was interrupted.
        revived: versions that engines got out of turn, because none was left alive or the run was interrupted.
        again: what was asked for and had not come back when the run was interrupted.
    """

    schedule: Schedule
    deal: Callable[[int], list[Deal]]
    fleet: Fleet
    sync: Synchroniser
    total_steps: int
    deadline_s: float
    sleep: bool
    requested: int
    revived: set[int] = field(default_factory=set)
    again: list[Key] = field(default_factory=list)

    def open(self, step: int) -> None:
        self.sync.to(step)
        self.fleet.idle_frac()
        if self.again:  # the weights that were to sample it are gone; the same seeds draw from those that are here
            self.revived.add(step)
        for batch, place in self.again:
            self.fleet.ask((batch, place), self.deal(batch)[place])
        self.again = []

    def ask(self, step: int) -> None:
        last = self.schedule.last_batch(step - 1 - (step - 1) % self.schedule.interval)
        while self.requested < min(last, self.total_steps):
            self.requested += 1
            self._check_engines(self.requested)
            for place, deal in enumerate(self.deal(self.requested)):
                self.fleet.ask((self.requested, place), deal)

    def take(self, step: int) -> tuple[list[Group], dict[str, float]]:
        self.ask(step)
        keys = [key for key in self.fleet.asked if key[0] == step]
        self._wait(self.fleet.asked if self.sleep else keys, step - 1)
        if self.sleep:
            self.fleet.sleep()
        groups = [self.fleet.hand_over(key) for key in keys]
        self._check_samples(step, groups)
        return groups, {}

    def learned(self, step: int) -> dict[str, float]:
        if not self.schedule.syncs_after(step):
            return {}
        self._wait(self.fleet.asked, step)
        metrics = {"idle/rollout_frac": self.fleet.idle_frac()} | self.sync.to(step)
        self.fleet.idle_frac()
        return metrics

    def stock(self, step: int) -> Stock:
        """Batches that were sampled and not learned from, all that was asked for among them; a run that is to end waits no
        longer than `LINGER_S` for it, and keeps what has not come back as requests.
        """
        try:
            self._wait(self.fleet.asked, step)
        except Interrupted:
            self.fleet.linger(LINGER_S)
        shelves: dict[str, list[Group]] = {}
        for (batch, _), group in sorted(self.fleet.done.items()):
            shelves.setdefault(f"batch_{batch}", []).append(group)
        again = [list(key) for key in self.fleet.asked if key not in self.fleet.done]
        return Stock(shelves, {"revived": sorted(self.revived), "again": again})

    def _wait(self, keys: list[Key], step: int) -> None:
        """Wait for groups. Engines that come back when all had died get the weights of learner step `step`."""
        while not all(key in self.fleet.done for key in keys):
            try:
                self.fleet.wait(self.deadline_s)
            except NoEngine:
                revive(self.fleet, self.sync, step)
                self.revived.add(step)

    def _check_engines(self, batch: int) -> None:
        """Refuse to sample a batch with weights that the schedule does not name."""
        if self.sync.version != self.schedule.version(batch) and self.sync.version not in self.revived:
            raise RloptError(
                f"batch {batch} is to be sampled by version {self.schedule.version(batch)}, and the engines hold "
                f"{self.sync.version}; a finished run goes on only from a multiple of sync.interval, and with sync.offset=0"
            )

    def _check_samples(self, step: int, groups: list[Group]) -> None:
        """Off-policyness is a promise: a sample of another version than the schedule's ends the run."""
        expected = {self.schedule.version(step), *self.revived}
        for group in groups:
            for sample in group.samples:
                if not expected.issuperset(sample.versions.tolist()):
                    raise RloptError(
                        f"step {step}: a sample of prompt {group.prompt.id} was spoken by versions "
                        f"{sorted(set(sample.versions.tolist()))}, the schedule says {self.schedule.version(step)}"
                    )


def revive(fleet: Fleet, sync: Synchroniser, step: int) -> None:
    """Wait for the engines that replace those that died, and give them the weights of learner step `step`."""
    if not fleet.join(wait=True):
        raise RloptError(
            "groups are waited for, nobody samples them, and no engine is being started: this is a fault of rlopt's"
        )
    sync.to(step)


def shelved(shelves: Mapping[str, list[Group]], again: Collection[Key] = ()) -> dict[Key, Group]:
    """What `Lockstep.stock` put on shelves, as the engines would have it; `again` is what was still under way."""
    found: dict[Key, Group] = {}
    for batch in batches_of(shelves):
        places = (place for place in count() if (batch, place) not in again)
        found |= {(batch, place): group for place, group in zip(places, shelves[f"batch_{batch}"], strict=False)}
    return found


def batches_of(shelves: Iterable[str]) -> list[int]:
    """The batches on shelves that `Lockstep.stock` named."""
    return [int(name.removeprefix("batch_")) for name in shelves if name.startswith("batch_")]
