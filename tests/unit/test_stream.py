"""Samplers that never stop: how far they run ahead, what a batch is made of, and what becomes of groups that are late."""

from typing import Any

import pytest
from builders import group, prompt
from fakes import Diary, Engines, Trainer

from rlopt.core.errors import RloptError
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import PendingRollouts
from rlopt.orchestrator.async_sampling import AsyncPlan, AsyncSampler, streamed
from rlopt.orchestrator.online_source import OnlineSource, Shares
from rlopt.weight_sync.synchronizer import Synchronizer


def make(**changed: Any) -> tuple[AsyncSampler, Engines, Trainer]:
    plan: dict[str, Any] = {"per_step": 2, "total_steps": 12, "interval": 1, "max_lag": 2, "stale": "wait", "ahead": 4}
    plan |= changed
    engines = Engines()
    trainer = Trainer(engines)
    sync = Synchronizer(trainer, engines, [(1, 2, 3)], True, 1e-3, 1, Diary(), lambda: 2)
    stream = AsyncSampler(
        AsyncPlan(**plan, deadline_s=1.0), lambda n: SampleRequest(prompt(f"p{n}"), "0"), engines, sync, 0, []
    )
    return stream, engines, trainer


def walk(stream: AsyncSampler, steps: int, first: int = 1) -> list[list[str]]:
    """The prompts of every step, with a synchronization after each."""
    taken = []
    for step in range(first, first + steps):
        taken.append([one.prompt.id for one in stream.take(step)[0]])
        stream.learned(step)
    return taken


def test_prompts_follow_one_another_and_none_is_skipped_or_repeated() -> None:
    stream, engines, _ = make()
    stream.open(0)
    taken = walk(stream, 12)
    assert [name for names in taken for name in names] == [f"p{n}" for n in range(24)]
    assert [number for _, number in engines.log] == list(range(24))  # and none is asked for that nobody would learn from


@pytest.mark.parametrize(("max_lag", "ahead"), [(0, 100), (1, 100), (2, 4), (5, 100)])
def test_no_lag_is_over_the_bound_however_far_samplers_could_run_ahead(max_lag: int, ahead: int) -> None:
    stream, engines, _ = make(max_lag=max_lag, ahead=ahead)
    stream.open(0)
    worst = []
    for step in range(1, 13):
        groups, _ = stream.take(step)
        worst.append(max(step - 1 - sample.version for one in groups for sample in one.samples))
        assert len(engines.asked) <= 2 * (max_lag + 1)
        stream.learned(step)
    assert max(worst) <= max_lag
    if max_lag == 0:
        assert worst == [0] * 12


def test_a_batch_is_made_of_the_groups_that_are_finished_and_a_slow_one_comes_later() -> None:
    stream, engines, _ = make(max_lag=3)
    engines.slow = {0}
    stream.open(0)
    assert walk(stream, 1) == [["p1", "p2"]]
    assert (0, 0) in engines.under_way


def test_the_learner_waits_for_a_slow_group_in_the_last_step_that_may_learn_from_it() -> None:
    stream, engines, _ = make(max_lag=2, stale="wait")
    engines.slow = {0}
    stream.open(0)
    taken = walk(stream, 3)
    assert ["p0" in names for names in taken] == [False, False, True]  # asked for by version 0: step 3 has lag 2


def test_a_group_that_is_late_is_given_up_and_counted_where_that_is_chosen() -> None:
    stream, engines, _ = make(max_lag=2, stale="drop")
    engines.slow = {0}
    stream.open(0)
    taken = walk(stream, 3)
    assert not any("p0" in names for names in taken)
    metrics = stream.take(4)[1]
    assert metrics["offpolicy/dropped_groups"] == 1
    assert engines.cancelled == [(0, 0)]


def test_the_lengths_of_all_that_finished_stand_beside_those_of_the_batch() -> None:
    stream, engines, _ = make(ahead=6)
    stream.open(0)
    engines.slow = {0, 1, 2, 3, 4, 5}
    stream.ask(1)
    long, short = group("long", (1.0,) * 8), group("short", (1.0,))  # 2, 3, ... 9 tokens and 2
    engines.done |= {(0, 0): short, (0, 1): short, (0, 2): long}
    for key in [(0, 0), (0, 1), (0, 2)]:
        engines.under_way.pop(key)
    engines.done = {key: group(f"p{key[1]}", tuple([1.0] * len(one.samples)), 0) for key, one in engines.done.items()}
    metrics = stream.take(1)[1]
    assert metrics["response_length/p90"] == 2
    assert metrics["response_length/finished_mean"] == pytest.approx((2 + 2 + sum(range(2, 10))) / 10)


def test_a_batch_that_no_reward_came_for_has_no_lengths() -> None:
    stream, engines, _ = make()
    stream.open(0)
    engines.slow = {0, 1, 2, 3, 4, 5}
    stream.ask(1)
    engines.done = {key: group(f"p{key[1]}", ()) for key in list(engines.under_way)[:2]}
    for key in engines.done:
        engines.under_way.pop(key)
    groups, metrics = stream.take(1)
    assert [one.samples for one in groups] == [(), ()]
    assert metrics == {"offpolicy/dropped_groups": 0}


def test_an_async_sampler_continues_with_finished_groups_and_requests_the_others_again() -> None:
    stream, engines, _ = make()
    engines.slow = {2, 5}
    stream.open(0)
    first = walk(stream, 2)
    pending = stream.pending(2)
    more, again, _ = make()
    under = streamed(pending)
    more.next, more.again = under.next, under.under_way
    again.done = dict(under.done)
    more.open(2)
    rest = walk(more, 10, first=3)
    assert sorted(int(name[1:]) for names in first + rest for name in names) == list(range(24))
    assert streamed(PendingRollouts({}, {})).next == 0


def test_a_group_that_is_older_than_the_bound_ends_the_run() -> None:
    stream, engines, _ = make(max_lag=1)
    stream.open(3)
    engines.done = {(3, 98): group("odd", version=0), (3, 99): group("even", version=3)}
    with pytest.raises(RloptError, match="step 4: a sample of prompt odd has lag 3, sync.max_lag=1"):
        stream.take(4)


def test_a_stream_is_a_source_like_any_other() -> None:
    stream, _, trainer = make()
    source = OnlineSource(Shares(2, 0, 0, 2), stream, None, None, trainer, None)
    source.open(0)
    drawn = source.take(1)
    assert len(drawn.sequences) == 4
    assert drawn.metrics["offpolicy/dropped_groups"] == 0
    assert source.learned(1)["sync/verified"] == 1
    assert set(source.pending(1).facts) == {"stream"}
