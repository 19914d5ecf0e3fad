"""Replay: groups that were learned from are kept and learned from again, the newest and least used first. Pure bookkeeping.

A group's priority is its version less `decay` times the number of uses, as in Trinity-RFT's priority queue; it leaves when it
was used `reuse` times, when it is older than the bound on lag, or when a better one needs its place.
"""

from dataclasses import dataclass, field, replace

from rlopt.core.samples import Group, PendingRollouts


@dataclass(frozen=True)
class ReplayPlan:
    """The settings of replay; `conf/config.yaml` has the meaning of each."""

    capacity: int
    reuse: int
    decay: float
    max_lag: int | None


@dataclass
class ReplayEntry:
    """A group in the buffer. `number` counts insertions and breaks ties: the newer one first."""

    group: Group
    uses: int
    number: int

    @property
    def version(self) -> int:
        """The oldest version that sampled a token of it."""
        return min(sample.version for sample in self.group.samples)


@dataclass
class ReplayBuffer:
    """The buffer. `learned` and `inserted` count samples, for `replay/samples_per_insert`."""

    plan: ReplayPlan
    kept: list[ReplayEntry] = field(default_factory=list)
    inserted: int = 0
    learned: int = 0
    dropped: int = 0

    def draw(self, step: int, count: int) -> list[Group]:
        """At most `count` groups for learner step `step`, best first. Those over the bound on lag are dropped and counted."""
        self._drop_stale(step)
        drawn = sorted(self.kept, key=self._rank)[:count]
        for one in drawn:
            one.uses += 1
            self.learned += len(one.group.samples)
        self.kept = [one for one in self.kept if one.uses < self.plan.reuse]
        return [one.group for one in drawn]

    def insert(self, groups: list[Group]) -> None:
        """Keep groups that are learned from for the first time; if there is no room, the worst are dropped."""
        for group in groups:
            samples = len(group.samples)
            if not samples:
                continue
            self.inserted += samples
            self.learned += samples
            number = 1 + max((one.number for one in self.kept), default=0)
            self.kept.append(ReplayEntry(replace(group, refills=0, faults=()), 1, number))  # their faults were reported already
        self.kept = sorted(self.kept, key=self._rank)[: self.plan.capacity]

    def pending(self) -> PendingRollouts:
        """The buffer, to be kept with a checkpoint."""
        facts = {
            "uses": [one.uses for one in self.kept],
            "numbers": [one.number for one in self.kept],
            "counts": [self.inserted, self.learned, self.dropped],
        }
        return PendingRollouts({"replay": [one.group for one in self.kept]}, {"replay": facts})

    def restore(self, pending: PendingRollouts) -> None:
        """Restore what `pending` returned."""
        facts = pending.facts["replay"]
        rows = zip(pending.sections.get("replay", []), facts["uses"], facts["numbers"], strict=True)
        self.kept = [ReplayEntry(*row) for row in rows]
        self.inserted, self.learned, self.dropped = facts["counts"]

    def metrics(self) -> dict[str, float]:
        """Metrics of the buffer."""
        return {
            "replay/groups": float(len(self.kept)),
            "replay/samples_per_insert": self.learned / max(1, self.inserted),
            "replay/dropped": float(self.dropped),
        }

    def _rank(self, one: ReplayEntry) -> tuple[float, int]:
        return self.plan.decay * one.uses - one.version, -one.number

    def _drop_stale(self, step: int) -> None:
        if self.plan.max_lag is None:
            return
        fresh = [one for one in self.kept if step - 1 - one.version <= self.plan.max_lag]
        self.dropped += len(self.kept) - len(fresh)
        self.kept = fresh
