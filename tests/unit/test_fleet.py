"""Engines that come and go, hand-written: what is asked for comes back once, whoever dies."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from builders import group

from rlopt.cluster.actors import Inbox as RealInbox
from rlopt.cluster.actors import Lost, Pending
from rlopt.core.errors import RloptError
from rlopt.core.samples import Key
from rlopt.rollout import engine_pool as module
from rlopt.rollout.engine import Engine
from rlopt.rollout.engine_pool import EnginePool


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

    @property
    def handles(self) -> list[str]:
        return [self.name]

    def start(self, verb: str, *_: Any, **__: Any) -> Call:
        call = Call("loaded" if verb == "start" else None)
        if verb == "sample":
            self.calls.append(call)
        return call

    def close(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Inbox:
    """Gives every call back once, when it has answered."""

    calls: list[Call] = field(default_factory=list)

    def watch(self, call: Call) -> None:
        self.calls.append(call)

    def take(self, timeout_s: float) -> list[Call]:
        answered = [call for call in self.calls if call.answer is not None]
        self.calls = [call for call in self.calls if call.answer is None]
        return answered


Made = tuple[EnginePool, list[Workers], list[str]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Two engines that have loaded; all engines there ever were, and what was reported."""
    monkeypatch.setattr(module, "finished", lambda calls: [call for call in calls if call.answer is not None])
    monkeypatch.setattr(module, "Inbox", Inbox)
    engines, events = list[Workers](), list[str]()

    def spawn(name: str, _: int) -> Any:
        engines.append(Workers(name))
        return engines[-1]

    def report(kind: str, **facts: Any) -> None:
        events.append(f"{kind} {facts.get('asked_again', '')}")

    fleet = EnginePool(spawn, 2, 1.0, 60.0)
    fleet.report = report
    fleet.join_all()
    return fleet, engines, events


def ask(fleet: EnginePool, count: int) -> list[Key]:
    keys: list[Key] = [(1, place) for place in range(count)]
    for key in keys:
        fleet.ask(key, None)  # type: ignore[arg-type]
    return keys


def test_a_group_that_came_back_as_its_engine_died_is_kept_and_no_other_engine_asked_for_it(made: Made) -> None:
    fleet, (first, second), events = made
    keys = ask(fleet, 4)
    lost, kept = first.calls  # of groups 0 and 2
    lost.answer, kept.answer = "died", group("before")
    fleet.poll()
    assert fleet.asked == keys
    assert list(fleet.done) == [(1, 2)]
    assert (events, len(second.calls)) == (["engine_lost 1"], 3)
    for call in second.calls:
        call.answer = group("after")
    fleet.poll()
    assert [fleet.take(key).prompt.id for key in keys] == ["after", "after", "before", "after"]
    assert fleet.asked == []


def restore_engines(fleet: EnginePool) -> None:
    """As a synchronization does."""
    fleet.join_all()
    fleet.assign_orphaned()


def test_engines_that_die_of_what_they_are_asked_for_are_not_replaced_for_ever(made: Made) -> None:
    fleet, engines, events = made
    ask(fleet, 1)

    def die_for_ever() -> None:
        for _ in range(60):
            for call in [call for engine in engines for call in engine.calls]:
                call.answer = "died"
            fleet.poll()
            restore_engines(fleet)

    with pytest.raises(RloptError, match="no group comes back, the last one, engine 5: the engine died"):
        die_for_ever()
    assert len(events) == 6


def test_engines_that_die_now_and_then_are_replaced_for_as_long_as_groups_come_back(made: Made) -> None:
    fleet, engines, events = made
    for step in range(20):
        fleet.ask((step, 0), None)  # type: ignore[arg-type]
        (call,) = [call for engine in engines for call in engine.calls if call.answer is None]
        call.answer = "died"
        fleet.poll()
        restore_engines(fleet)
        (call,) = [call for engine in engines for call in engine.calls if call.answer is None]
        call.answer = group("a")
        fleet.poll()
        fleet.take((step, 0))
    assert len(events) == 20


def reload(fleet: EnginePool, loads: list[bool]) -> None:
    """All engines die, and those in their place load, or not."""
    for engine in list(fleet.handles):
        fleet.lose(engine, "was killed")
    for (_, pending), good in zip(fleet._starting, loads, strict=True):
        pending.answer = "loaded" if good else "died"  # type: ignore[attr-defined]
    fleet.join_all()


@pytest.mark.parametrize("loads", [[True, False], [False, True]])
def test_an_engine_that_cannot_load_is_given_up_while_another_can_whichever_comes_first(made: Made, loads: list[bool]) -> None:
    fleet, _, events = made
    reload(fleet, loads)
    assert len(fleet.handles) == 1
    assert events[-1] == "engine_failed "


def test_a_run_whose_engines_all_cannot_load_ends(made: Made) -> None:
    with pytest.raises(Lost, match="the engine died during: starting up"):
        reload(made[0], [False, False])


@dataclass
class Silent(Workers):
    """An engine that has work; its answers to `progress` are the test's."""

    progress: list[Call] = field(default_factory=list)

    def start(self, verb: str, *_: Any, **__: Any) -> Call:
        if verb == "progress":
            self.progress.append(Call())
            return self.progress[-1]
        return super().start(verb)

    def check(self) -> None: ...


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Silent, Callable[[float], str | None]]:
    """An engine with one request; `look` looks once a second for so many seconds, for a silence of 40 s."""
    now = [1000.0]
    monkeypatch.setattr("rlopt.rollout.engine.finished", lambda calls: [call for call in calls if call.answer is not None])
    monkeypatch.setattr("rlopt.rollout.engine.time.monotonic", lambda: now[0])
    workers = Silent("engine 4")
    engine = Engine(4, workers, _seen=now[0], _looked=now[0])  # type: ignore[arg-type]
    engine.calls[Call()] = ((1, 0), None)  # type: ignore[index,assignment]

    def look(seconds: float) -> str | None:
        why = None
        for _ in range(int(seconds)):
            now[0] += 1
            why = why or engine.trouble(40)
        return why

    return engine, workers, look


Look = tuple[Engine, Silent, Callable[[float], str | None]]


def test_an_engine_that_has_work_and_does_not_answer_is_given_up_after_the_silence_that_is_allowed(silent: Look) -> None:
    _, workers, look = silent
    assert look(40) is None
    assert len(workers.progress) == 1
    assert look(1) == "engine 4 had 1 request(s) and computed nothing for 41 s (rollout.stall_s)"


@pytest.mark.parametrize(("computing", "given_up"), [(3, True), (0, False)])
def test_an_engine_that_answers_and_makes_no_step_is_given_up_unless_rewards_are_all_it_waits_for(
    silent: Look, computing: int, given_up: bool
) -> None:
    _, workers, look = silent
    found = None
    for _ in range(120):
        found = found or look(1)
        for call in workers.progress:
            call.answer = (computing, 17)
    assert bool(found) == given_up


def test_an_engine_that_makes_steps_is_kept_however_long_its_groups_take(silent: Look) -> None:
    _, workers, look = silent
    for second in range(200):
        assert look(1) is None
        for call in workers.progress:
            call.answer = call.answer or (3, second)


def test_an_engine_is_not_given_up_for_a_time_in_which_nobody_looked(silent: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, look = silent
    assert look(15) is None
    monkeypatch.setattr("rlopt.rollout.engine.time.monotonic", lambda: 5000.0)
    assert engine.trouble(40) is None


def test_an_engine_that_receives_weights_and_does_not_answer_is_ended_and_then_lost_for_that_reason(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, _, events = made
    written = list[Any]()
    fleet.report = lambda kind, **facts: written.append((kind, facts.get("engine"), facts.get("why")))
    monkeypatch.setattr(Workers, "check", lambda self: None, raising=False)
    monkeypatch.setattr("rlopt.rollout.engine.finished", lambda calls: [])
    now = [0.0]
    monkeypatch.setattr("rlopt.rollout.engine.time.monotonic", lambda: now[0])
    killed = list[str]()
    monkeypatch.setattr(Workers, "kill", lambda self: killed.append(self.name))
    fleet._up[1]._seen = fleet._up[1]._looked = fleet._up[0]._seen = fleet._up[0]._looked = 0.0
    for _ in range(70):
        now[0] += 1
        fleet._up[0].alive()
        fleet.end_silent()
    assert killed == ["engine 1"]
    fleet.lose(1, "the engine died during update_weights")
    assert written == [("engine_lost", 1, "engine 1 had 0 request(s) and computed nothing for 61 s (rollout.stall_s)")]
    assert not events


@dataclass(eq=False)
class Ref:
    """A reference whose answer the test gives."""

    answer: Future[Any] = field(default_factory=Future)

    def future(self) -> Future[Any]:
        return self.answer


def test_an_answer_that_was_taken_is_freed_at_once_and_with_it_its_place_in_the_object_store() -> None:
    inbox, refs = RealInbox(), [Ref(), Ref()]
    for ref in refs:
        inbox.watch(Pending([ref], "engine 0", 1.0))
    assert inbox.take() == []
    made = group()
    freed = weakref.ref(made)
    refs[1].answer.set_result(made)
    (call,) = inbox.take(1.0)
    assert call.result("sampling") == [made]
    gc.disable()  # it comes seldom, and groups in a circle would wait for it
    try:
        del call, made, refs, ref
        assert freed() is None
    finally:
        gc.enable()
