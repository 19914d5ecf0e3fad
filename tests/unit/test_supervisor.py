"""What becomes of a run that loses something, decided without any process."""

from typing import Any

import pytest

from rlopt.cluster.actors import ClusterLost, Lost, Stalled
from rlopt.core.supervisor import Events, Loss, Supervisor
from rlopt.run.launch import loss_of

ENGINE = Loss("engine", "engine 3", "died", 0.5)
RANK = Loss("learner", "learner[1]", "died", 0.5)
LATE = Loss("learner", "learner[1]", "did not answer", 600.0, stalled=True)
RAY = Loss("cluster", "Ray", "raylet died", 0.0)
DISK = Loss("disk", "/runs/a", "is full", 0.0)


def test_an_engine_is_replaced_until_engines_die_one_after_another_and_nothing_comes_back() -> None:
    supervisor = Supervisor(engines=2)
    assert [supervisor.lost(ENGINE) for _ in range(6)] == ["replace"] * 5 + ["end"]
    supervisor.sampled()
    assert supervisor.lost(ENGINE) == "replace"


@pytest.mark.parametrize("loss", [RANK, RAY])
def test_a_rank_or_ray_is_restarted_as_often_as_asked_for_without_a_new_checkpoint(loss: Loss) -> None:
    supervisor = Supervisor(restarts=2)
    assert [supervisor.lost(loss) for _ in range(3)] == ["restart", "restart", "end"]
    supervisor.saved()
    assert supervisor.lost(loss) == "restart"


def test_no_restarts_are_made_where_none_are_asked_for() -> None:
    assert Supervisor(restarts=0).lost(RANK) == "end"


def test_what_took_too_long_twice_will_not_be_quicker() -> None:
    supervisor = Supervisor(restarts=5)
    assert [supervisor.lost(LATE), supervisor.lost(LATE)] == ["restart", "end"]
    supervisor = Supervisor(restarts=5)
    assert [supervisor.lost(LATE), supervisor.lost(RANK), supervisor.lost(LATE)] == ["restart"] * 3


@pytest.mark.parametrize(("pauses", "verdict"), [(True, "pause"), (False, "end")])
def test_a_full_disk_pauses_saving_where_asked_for(pauses: bool, verdict: str) -> None:
    assert Supervisor(restarts=3, pauses=pauses).lost(DISK) == verdict


def test_every_loss_is_written_down_with_tries_left_and_seconds_and_the_recovery_with_its_own() -> None:
    written, now = list[tuple[str, dict[str, Any]]](), [100.0]
    supervisor = Supervisor(restarts=3, report=lambda kind, **facts: written.append((kind, facts)), clock=lambda: now[0])
    supervisor.lost(RANK, step=7)
    now[0] = 108.3
    supervisor.stepped()
    supervisor.stepped()
    facts = {"who": "learner[1]", "why": "died", "detected_s": 0.5, "verdict": "restart", "tries_left": 2, "step": 7}
    assert written == [("learner_lost", facts), ("recovered", {"seconds": 8.3})]


def test_what_happens_between_two_journals_is_in_the_next() -> None:
    written, events = list[str](), Events()
    events("before")
    assert not written
    events.to(lambda kind, **facts: written.append(kind))
    events("meanwhile")
    events.keep()
    events("after")
    assert written == ["before", "meanwhile"]
    events.to(lambda kind, **facts: written.append(kind))
    assert written == ["before", "meanwhile", "after"]


def test_a_death_a_stall_and_the_end_of_ray_are_losses_and_engines_that_do_not_get_ready_are_not() -> None:
    assert loss_of(Lost("learner died", "learner", 2.0)) == Loss("learner", "learner", "learner died", 2.0)
    assert loss_of(Stalled("waited", "learner", 9.0)) == Loss("learner", "learner", "waited", 9.0, stalled=True)
    assert loss_of(ClusterLost("Ray's raylet died")) == Loss("cluster", "Ray", "Ray's raylet died", 0.0)
    assert loss_of(Lost("died", "engine 0", 9.0)) == Loss("start", "engine 0", "died", 9.0)
    assert loss_of(Stalled("waited", "engine 0", 9.0)) is None
    assert loss_of(Stalled("Ray did not start")) is None
