"""Engines that come and go, hand-written: what is asked for comes back once, whoever dies."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from builders import group

from rlopt import fleet as module
from rlopt.cluster import Lost
from rlopt.fleet import Fleet
from rlopt.types import Key


@dataclass(eq=False)
class Call:
    """A call that has answered, or died with its worker, or neither."""

    answer: Any = None

    def result(self, what: str) -> list[Any]:
        if self.answer == "died":
            raise Lost(f"the engine died during: {what}")
        return [self.answer]


@dataclass
class Workers:
    """An engine that answers when the test says so."""

    name: str
    calls: list[Call] = field(default_factory=list)

    def start(self, verb: str, *_: Any, **__: Any) -> Call:
        call = Call("loaded" if verb == "start" else None)
        if verb == "sample":
            self.calls.append(call)
        return call

    def close(self) -> None: ...


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Workers]:
    monkeypatch.setattr(module, "finished", lambda calls: [call for call in calls if call.answer is not None])
    return []


def test_a_group_that_came_back_as_its_engine_died_is_kept_and_no_other_engine_asked_for_it(engines: list[Workers]) -> None:
    def spawn(name: str, _: int) -> Any:
        engines.append(Workers(name))
        return engines[-1]

    events: list[tuple[str, dict[str, Any]]] = []
    fleet = Fleet(spawn, 2, 1.0)
    fleet.report = lambda kind, **facts: events.append((kind, facts))
    fleet.join(wait=True)
    keys: list[Key] = [(1, place) for place in range(4)]
    for key in keys:
        fleet.ask(key, None)  # type: ignore[arg-type]
    first, second = engines
    lost, kept = first.calls  # of groups 0 and 2
    lost.answer, kept.answer = "died", group("before")
    fleet.poll()
    assert fleet.asked == keys
    assert list(fleet.done) == [(1, 2)]
    assert (events[-1][0], events[-1][1]["asked_again"], len(second.calls)) == ("engine_lost", 1, 3)
    for call in second.calls:
        call.answer = group("after")
    fleet.poll()
    assert [fleet.hand_over(key).prompt.id for key in keys] == ["after", "after", "before", "after"]
    assert fleet.asked == []
