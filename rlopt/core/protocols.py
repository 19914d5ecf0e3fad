"""Interfaces between packages, where one may not import the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rlopt.core.samples import Group
from rlopt.core.shapes import Tokens
from rlopt.core.table import SequenceTable, Update


@dataclass(frozen=True)
class Sent:
    """The size and duration of one sending, why engines failed (`faults`, by number), and which of these are `dead`.

    `broken`: what connected the learner to the engines is gone, and all of them are to be connected, and sent to, again.
    """

    bytes: int
    seconds: float
    faults: Mapping[int, str]
    dead: set[int]
    broken: bool = False


class Learners(Protocol):
    """The learner ranks, as the driver sees them. Documented in `learner.group.Learners`."""

    def update(self, updates: list[Update], step: int) -> dict[str, float]: ...
    def measure(self, update: Update) -> dict[str, float]: ...
    def score_policy(self, sequences: SequenceTable, temperature: float | None = None) -> Tokens: ...
    def score_reference(self, sequences: SequenceTable) -> Tokens: ...
    def connect(self, engines: Mapping[int, Any], ranks_per_engine: int) -> None: ...
    def sync(self, version: int, only: list[int] | None, meanwhile: Callable[[], None] = ...) -> Sent: ...
    def release(self) -> None: ...


class Journal(Protocol):
    """The files and loggers of a run. Documented in `tracking.journal.Journal`."""

    def step(self, metrics: Mapping[str, float], groups: list[Group], policy: Tensor | None) -> None: ...
    def event(self, kind: str, **facts: object) -> None: ...
