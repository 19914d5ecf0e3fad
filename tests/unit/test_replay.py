"""Replay: who is drawn, how often, what leaves, and the one number."""

from builders import group

from rlopt.core.samples import Group, PendingRollouts
from rlopt.orchestrator.online_source import OnlineSource, Shares
from rlopt.orchestrator.replay_buffer import ReplayBuffer, ReplayPlan


def make(capacity: int = 10, reuse: int = 3, decay: float = 2.0, max_lag: int | None = None) -> ReplayBuffer:
    return ReplayBuffer(ReplayPlan(capacity, reuse, decay, max_lag))


def names(groups: list[Group]) -> list[str]:
    return [one.prompt.id for one in groups]


def test_the_newest_and_least_used_are_drawn_first() -> None:
    replay = make()
    replay.insert([group("old", version=0), group("new", version=3)])
    assert names(replay.draw(4, 1)) == ["new"]  # priorities 3 - 2 and 0 - 2
    assert names(replay.draw(4, 2)) == ["new", "old"]  # now 3 - 4 and 0 - 2: the old one first would be the same two
    replay.insert([group("newest", version=4)])
    assert names(replay.draw(5, 1)) == ["newest"]


def test_a_use_counts_as_much_as_decay_versions_of_age() -> None:
    replay = make(reuse=9)
    replay.insert([group("a", version=3), group("b", version=0)])
    assert [names(replay.draw(4, 1)) for _ in range(3)] == [["a"], ["a"], ["b"]]  # a: 1, -1, -3; b: -2


def test_a_group_leaves_when_it_was_used_up_or_is_too_old_or_a_better_one_needs_its_place() -> None:
    replay = make(reuse=2)
    replay.insert([group("a")])
    assert names(replay.draw(2, 5)) == ["a"]
    assert replay.kept == []
    bounded = make(max_lag=3)
    bounded.insert([group("old", version=0), group("fresh", version=2)])
    assert names(bounded.draw(5, 5)) == ["fresh"]  # lags 4 and 2
    assert bounded.metrics()["replay/dropped"] == 1
    small = make(capacity=1)
    small.insert([group("old", version=0), group("fresh", version=2)])
    assert names([one.group for one in small.kept]) == ["fresh"]


def test_samples_per_insert_counts_every_sample_that_is_learned_from() -> None:
    replay = make()
    replay.insert([group("a"), group("b")])  # 4 samples
    replay.draw(2, 1)  # 2 more uses
    assert replay.metrics() == {"replay/groups": 2.0, "replay/samples_per_insert": 1.5, "replay/dropped": 0.0}


def test_a_buffer_that_was_kept_continues_unchanged() -> None:
    first, second = make(), make()
    first.insert([group(f"g{i}", version=i) for i in range(4)])
    first.draw(5, 2)
    second.restore(first.pending())
    first.insert([group("more", version=4)])
    second.insert([group("more", version=4)])
    for _ in range(3):
        assert names(first.draw(6, 2)) == names(second.draw(6, 2))
    assert first.metrics() == second.metrics()


def test_a_step_learns_from_new_groups_and_from_those_that_are_drawn_but_never_twice_from_one() -> None:
    class Sampler:
        def open(self, step: int) -> None: ...
        def take(self, step: int) -> tuple[list[Group], dict[str, float]]:
            return [group(f"{step}", version=step - 1)], {}

        def learned(self, step: int) -> dict[str, float]:
            return {}

        def pending(self, step: int) -> PendingRollouts:
            return PendingRollouts({}, {})

    class Learner:
        score = None

    source = OnlineSource(
        Shares(1, 1, 1, 2), Sampler(), make(), lambda first, count: [group(f"r{first}", (1.0, 0.0) * 2)], Learner(), None
    )  # type: ignore[arg-type]
    first = source.take(1)
    assert names(first.groups) == ["1", "r0"]
    assert first.metrics["offpolicy/dropped_frac"] == 0  # a recorded group of 4 and a new one of 2, none of them dropped
    second = source.take(2)
    assert names(second.groups) == ["2", "1", "r1"]
    assert second.metrics["replay/samples_per_insert"] == 1.5
    assert second.metrics["offpolicy/lag_max"] == 1
    assert list(source.pending(2).sections) == ["replay"]
