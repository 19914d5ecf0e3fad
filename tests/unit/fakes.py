"""Hand-written stand-ins for engines, learners and journal, in one process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from builders import group
from torch import Tensor

from rlopt.core.errors import Interrupted, NoEngine
from rlopt.core.protocols import Sent
from rlopt.core.requests import EngineLogprobs, SampleRequest
from rlopt.core.samples import Group, Key
from rlopt.core.table import SequenceTable, Update


def sent(faults: Mapping[int, str] | None = None, dead: set[int] | None = None) -> Sent:
    return Sent(bytes=8, seconds=0.1, faults=faults or {}, dead=dead or set())


@dataclass
class Engines:
    """Samples at once, with the version it holds; but for the keys in `slow`, which come back one `wait` after another."""

    version: int = -1
    numbers: list[int] = field(default_factory=lambda: [0])
    loading: list[int] = field(default_factory=list)
    log: list[Key] = field(default_factory=list)
    done: dict[Key, Group] = field(default_factory=dict)
    slow: set[int] = field(default_factory=set)
    under_way: dict[Key, SampleRequest] = field(default_factory=dict)
    asked_with: dict[Key, int] = field(default_factory=dict)
    cancelled: list[Key] = field(default_factory=list)
    lost: list[tuple[int, str]] = field(default_factory=list)
    wanted: int = 0
    asleep: bool = False
    naps: int = 0
    stopping: bool = False
    waited_idle: list[float] = field(default_factory=list)

    @property
    def asked(self) -> list[Key]:
        return sorted([*self.done, *self.under_way])

    @property
    def in_flight(self) -> int:
        return len(self.under_way)

    @property
    def handles(self) -> dict[int, object]:
        return {number: object() for number in self.numbers}

    def ask(self, key: Key, request: SampleRequest) -> None:
        assert not self.asleep
        self.log.append(key)
        if key[1] in self.slow or not self.numbers:
            self.under_way[key] = request
            self.asked_with[key] = self.version
        else:
            self.done[key] = group(request.prompt.id, (1.0, 0.0), self.version)

    def poll(self) -> None:
        pass

    def end_silent(self) -> None:
        pass

    def wait(self, deadline_s: float) -> None:
        if not self.numbers:
            raise NoEngine
        if self.stopping:
            raise Interrupted
        key = min(self.under_way)
        version = self.asked_with.get(key, self.version)
        self.done[key] = group(self.under_way.pop(key).prompt.id, (1.0, 0.0), version)

    def wait_idle(self, seconds: float) -> None:
        self.waited_idle.append(seconds)

    def take(self, key: Key) -> Group:
        return self.done.pop(key)

    def cancel(self, key: Key) -> None:
        self.cancelled.append(key)
        self.done.pop(key, None)
        self.under_way.pop(key, None)

    def join_loaded(self) -> bool:
        return self.join_all()

    def join_all(self) -> bool:
        self.numbers += self.loading
        joined, self.loading = bool(self.loading), []
        return joined

    def resize(self, count: int) -> None:
        self.wanted = count

    def assign_orphaned(self) -> None:
        under_way, self.under_way = self.under_way, {}
        for key, request in under_way.items():
            self.ask(key, request)
            self.log.pop()

    def idle_frac(self) -> float:
        return 0.25

    def sleep(self) -> None:
        assert not self.under_way
        self.naps += not self.asleep
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def lose(self, number: int, why: str) -> None:
        self.numbers.remove(number)
        self.lost.append((number, why))

    def canary(self, texts: list[tuple[int, ...]], numbers: list[int]) -> Callable[[], dict[int, list[EngineLogprobs]]]:
        return lambda: {
            n: [EngineLogprobs(np.full(len(t) - 1, -0.5, np.float32), self.version) for t in texts] for n in numbers
        }


@dataclass
class Trainer:
    """Learns nothing; says -0.5 for every token, as the engines do, plus `gap`."""

    engines: Engines
    gap: float = 0.0
    arrives: bool = True
    faults: list[dict[int, str]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    updates: list[int] = field(default_factory=list)
    synced: list[int] = field(default_factory=list)
    sent_to: list[list[int] | None] = field(default_factory=list)
    connected: list[list[int]] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)
    released: int = 0

    def update(self, updates: list[Update], step: int) -> dict[str, float]:
        self.updates.append(step)
        return {}

    def score_policy(self, sequences: SequenceTable, temperature: float | None = None) -> Tensor:
        return self._scores("policy" if temperature is None else "canary", sequences)

    def score_reference(self, sequences: SequenceTable) -> Tensor:
        return self._scores("reference", sequences)

    def _scores(self, what: str, sequences: SequenceTable) -> Tensor:
        self.scored.append((what, len(sequences)))
        return torch.full(sequences.shape, -0.5 + self.gap)

    def measure(self, update: Update) -> dict[str, float]:
        return {"preference/margin": float(len(update)), "actor/entropy": 0.1}

    def release(self) -> None:
        assert self.engines.asleep
        self.released += 1

    def connect(self, engines: Mapping[int, object], ranks_per_engine: int) -> None:
        self.connected.append(sorted(engines))

    def sync(self, version: int, only: list[int] | None, meanwhile: Callable[[], None] = lambda: None) -> Sent:
        assert not self.engines.asleep
        self.synced.append(version)
        self.sent_to.append(only)
        if self.arrives:
            self.engines.version = version
        faults = self.faults.pop(0) if self.faults else {}
        return sent(faults, self.dead & faults.keys())


@dataclass
class Diary:
    rows: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    facts: list[dict[str, object]] = field(default_factory=list)
    policies: list[Tensor | None] = field(default_factory=list)

    def step(self, metrics: Mapping[str, float], groups: list[Group], policy: Tensor | None) -> None:
        self.rows.append(dict(metrics))
        self.policies.append(policy)

    def event(self, kind: str, **facts: object) -> None:
        self.events.append(kind)
        self.facts.append(facts)
