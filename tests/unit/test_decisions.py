"""What an asynchronous run decided, decided again after an interruption, however fast the engines are then."""

from pathlib import Path

import pytest
from builders import group
from fakes import Engines
from test_stream import make, walk

from rlopt.orchestrator.async_sampling import AsyncSampler, Under, after, streamed
from rlopt.orchestrator.decisions import NAME, Decision, Decisions


def resumed(run: Path, step: int, under: Under, slow: set[int]) -> tuple[AsyncSampler, Engines]:
    decisions = Decisions(run, step, begins=False)
    stream, engines, _ = make(stale="wait", max_lag=3)
    state = after(under, decisions.ahead)
    stream.decisions, stream.next, stream.again = decisions, state.next, state.under_way
    engines.done, engines.slow = dict(state.done), slow
    stream.open(step)
    return stream, engines


@pytest.mark.parametrize("interrupted_after", [3, 4, 6])
def test_the_steps_after_a_checkpoint_learn_from_the_same_groups_again_and_the_rest_from_all_others(
    interrupted_after: int, tmp_path: Path
) -> None:
    stream, engines, _ = make(stale="wait", max_lag=3)
    stream.decisions = Decisions(tmp_path, 0, begins=True)
    engines.slow = {1, 4}  # so that batches are not in order
    stream.open(0)
    first = walk(stream, 3)
    kept = streamed(stream.pending(3))
    stream.decisions.saved(3)
    decided = walk(stream, interrupted_after - 3, first=4)
    more, _ = resumed(tmp_path, 3, kept, slow={7, 8})  # others are slow now
    again = walk(more, 9, first=4)
    assert again[: len(decided)] == decided
    assert sorted(int(name[1:]) for names in first + again for name in names) == list(range(24))


def test_a_checkpoint_among_steps_that_are_made_again_has_what_is_still_decided(tmp_path: Path) -> None:
    stream, engines, _ = make(stale="wait", max_lag=3)
    stream.decisions = Decisions(tmp_path, 0, begins=True)
    engines.slow = {1, 4}
    stream.open(0)
    decided = walk(stream, 5)
    more, _ = resumed(tmp_path, 0, Under(0, {}, []), slow={7})
    assert walk(more, 2) == decided[:2]
    kept = streamed(more.pending(2))
    assert more.decisions
    more.decisions.saved(2)
    last, _ = resumed(tmp_path, 2, kept, slow={8})
    rest = walk(last, 10, first=3)
    assert rest[:3] == decided[2:]
    assert sorted(int(name[1:]) for names in decided[:2] + rest for name in names) == list(range(24))
    (tmp_path / NAME).unlink()  # the checkpoint alone is enough to lose and repeat nothing
    last, _ = resumed(tmp_path, 2, kept, slow=set())
    rest = walk(last, 10, first=3)
    assert sorted(int(name[1:]) for names in decided[:2] + rest for name in names) == list(range(24))


def test_the_metrics_and_what_was_given_up_come_back_and_a_line_that_was_cut_does_not(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path, 4, begins=True)
    for step in (5, 6, 7):
        decisions.add(Decision(step, [(4, 9)], [3], [group("a", (1.0, 0.0))], {"response_length/p90": 0.1 + step}))
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:-5])
    there = Decisions(tmp_path, 4, begins=False).ahead
    assert [(one.step, one.keys, one.dropped, one.metrics["response_length/p90"]) for one in there] == [
        (5, [(4, 9)], [3], 5.1),
        (6, [(4, 9)], [3], 6.1),
    ]
    assert there[0].groups[0].samples[0].reward == 1.0
    assert not Decisions(tmp_path, 3, begins=False).ahead  # step 4 is missing: what follows it would be decided otherwise
    assert not Decisions(tmp_path, 4, begins=True).ahead


def test_prompts_that_were_given_up_are_not_asked_for_again() -> None:
    decisions = [Decision(4, [(3, 6), (3, 9)], [7], [], {})]
    under = after(Under(7, {(2, 5): group("p5"), (3, 6): group("p6")}, [4]), decisions)
    assert (under.next, under.under_way, list(under.done)) == (10, [4, 8], [(2, 5)])
