"""The loop with hand-written samplers and learners: what is asked of whom, in which order, under every schedule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import OBJECTIVE, group, prompt, terms
from fakes import Diary, Engines, Trainer
from torch import Tensor, testing

from rlopt.core.errors import RloptError, StoppedEarly
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Example, PendingRollouts
from rlopt.core.table import SequenceTable, Update
from rlopt.data.collate import tabulate_examples
from rlopt.data.prompt_sampler import PromptSampler
from rlopt.data.reference_scores import ReferenceScores
from rlopt.objectives.dpo import DPO
from rlopt.orchestrator.lockstep import LockstepSampler, sampled_groups
from rlopt.orchestrator.loop import Loop, Plan
from rlopt.orchestrator.online_source import Evaluation, OnlineSource, Shares
from rlopt.orchestrator.progress import Position
from rlopt.orchestrator.recorded_source import RecordedSource, References
from rlopt.orchestrator.schedule import Schedule
from rlopt.weight_sync.synchronizer import Synchronizer

Saved = list[tuple[Position, PendingRollouts]]


def make(
    interval: int,
    offset: int,
    total: int,
    save_every: int = 0,
    sampled: int = 0,
    plan: Plan | None = None,
    evaluation: Evaluation | None = None,
    asked_to_save: Callable[[Mapping[str, float]], bool] = lambda metrics: False,
    stop: int = 0,
    sleep: bool = False,
    restored: Sequence[int] = (),
) -> tuple[Loop, Engines, Trainer, Diary, Saved]:
    engines, diary, saved = Engines(), Diary(), Saved()
    trainer = Trainer(engines)
    lockstep = LockstepSampler(
        schedule=Schedule(interval, offset),
        requests_of=lambda batch: [SampleRequest(prompt(f"{batch}/{i}"), "0") for i in range(2)],
        engines=engines,
        sync=Synchronizer(trainer, engines, [(1, 2, 3)], True, 1e-3, 1, diary, lambda: 2),
        total_steps=total,
        deadline_s=1.0,
        sleep=sleep,
        requested=sampled,
        restored=set(restored),
    )
    loop = Loop(
        plan=plan or Plan(total, save_every, record=False, old_logprobs="behavior", minibatches=1, reference_every=1),
        objective=OBJECTIVE,
        terms=terms(),
        source=OnlineSource(Shares(2, 0, 0, 2), lockstep, None, None, trainer, evaluation),
        learners=trainer,
        journal=diary,
        save=lambda position, pending: saved.append((replace(position), pending)) is None,
        asked_to_save=asked_to_save,
        stepped=lambda: None,
        asked_to_stop=lambda: trainer.updates[-1:] == [stop],
    )
    return loop, engines, trainer, diary, saved


@pytest.mark.parametrize(("interval", "offset", "naps"), [(1, 0, 12), (4, 0, 3), (1, 3, 12), (4, 2, 3), (20, 0, 1)])
def test_engines_that_sleep_do_so_from_their_last_sample_to_the_next_sync(interval: int, offset: int, naps: int) -> None:
    loop, engines, trainer, diary, _ = make(interval, offset, total=12, sleep=True)
    learn = trainer.update

    def update(batches: list[Update], step: int) -> dict[str, float]:
        assert engines.asleep
        return learn(batches, step)

    trainer.update = update  # type: ignore[method-assign]
    loop.run(Position())
    assert trainer.updates == list(range(1, 13))
    assert engines.naps == naps
    assert trainer.released == naps - 1  # the last sleep is not woken from
    assert [row["version"] for row in diary.rows] == [Schedule(interval, offset).version(b) for b in range(1, 13)]


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2), (300, 199)])
def test_every_batch_is_sampled_by_the_version_of_the_schedule(interval: int, offset: int) -> None:
    loop, engines, trainer, diary, _ = make(interval, offset, total=65)
    loop.run(Position())
    schedule = Schedule(interval, offset)
    assert [row["version"] for row in diary.rows] == [schedule.version(b) for b in range(1, 66)]
    assert [row["offpolicy/lag_max"] for row in diary.rows] == [schedule.lag(b) for b in range(1, 66)]
    assert engines.log == [(batch, place) for batch in range(1, 66) for place in range(2)]
    assert trainer.updates == list(range(1, 66))
    assert trainer.synced == [0, *range(interval, 65, interval)]


def test_samplers_run_a_whole_window_ahead_of_the_learner() -> None:
    loop, engines, trainer, _, _ = make(20, 0, total=40)
    seen: list[tuple[int, int]] = []
    update = trainer.update
    trainer.update = lambda batches, step: seen.append((step, max(engines.log)[0])) or update(batches, step)  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    assert seen[0] == (1, 20)
    assert seen[20] == (21, 40)


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2), (7, 3)])
@pytest.mark.parametrize("stop", [1, 13, 20, 28])
def test_a_run_that_continues_from_any_checkpoint_asks_for_nothing_twice_and_skips_nothing(
    interval: int, offset: int, stop: int
) -> None:
    whole, engines, _, diary, saved = make(interval, offset, total=45, save_every=stop)
    whole.run(Position())
    position, pending = saved[0]
    assert position.step == stop
    kept = sampled_groups(pending.sections)
    sampled = max([stop, *(batch for batch, _ in kept)])
    again, more_engines, _, more_diary, _ = make(interval, offset, total=45, sampled=sampled)
    more_engines.done = dict(kept)
    again.run(replace(position))
    assert more_engines.log == [key for key in engines.log if key[0] > sampled]
    keys = ("step", "version", "offpolicy/lag_max", "samples_seen", "tokens_seen")
    assert [[row[key] for key in keys] for row in more_diary.rows] == [[row[key] for key in keys] for row in diary.rows[stop:]]


def test_a_sample_of_another_version_than_the_schedules_ends_the_run() -> None:
    loop, engines, _, _, _ = make(2, 0, total=5)
    give = engines.take
    engines.take = lambda key: give(key) and group("odd", version=1 if key[0] == 3 else engines.version)  # type: ignore[method-assign]
    with pytest.raises(RloptError, match=r"step 3: a sample of prompt odd was sampled by versions \[1\], the schedule says 2"):
        loop.run(Position())


def test_a_finished_run_is_extended_only_where_its_weights_are_still_there() -> None:
    loop, _, _, _, saved = make(20, 0, total=30)
    loop.run(Position())
    longer, _, _, _, _ = make(20, 0, total=60, sampled=30)
    with pytest.raises(RloptError, match="batch 31 is to be sampled by version 20, and the engines hold 30"):
        longer.run(saved[-1][0])


def test_the_policy_is_scored_once_a_step_where_the_anchor_is_proximal_and_every_update_gets_whole_groups() -> None:
    plan = Plan(3, 0, record=False, old_logprobs="proximal", minibatches=2, reference_every=1)
    loop, _, trainer, _, _ = make(1, 0, total=3, plan=plan)
    given: list[list[Update]] = []
    trainer.update = lambda batches, step: given.append(batches) or {}  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    assert [len(batches) for batches in given] == [2, 2, 2]
    assert {len(update) for updates in given for update in updates} == {2}
    steps = [entry for entry in trainer.scored if entry[0] != "canary"]
    assert steps == [("policy", 4), ("reference", 4)] * 3


def test_the_policy_is_scored_before_it_learns_where_a_record_is_kept() -> None:
    plan = Plan(2, 0, record=True, old_logprobs="behavior", minibatches=1, reference_every=1)
    loop, _, trainer, diary, _ = make(1, 0, total=2, plan=plan)
    loop.run(Position())
    assert [policy is not None for policy in diary.policies] == [True, True]
    assert [entry for entry in trainer.scored if entry[0] != "canary"] == [("policy", 4), ("reference", 4)] * 2


@pytest.mark.parametrize(("every", "measured"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (0, [])])
def test_the_reference_scores_only_the_steps_at_which_kl_is_measured(every: int, measured: list[int]) -> None:
    plan = Plan(5, 0, record=False, old_logprobs="behavior", minibatches=1, reference_every=every)
    loop, _, trainer, _, _ = make(1, 0, total=5, plan=plan)
    given: dict[int, Update] = {}
    trainer.update = lambda batches, step: given.update({step: batches[0]}) or {}  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    assert [step for step, batch in given.items() if batch.reference is not None] == measured
    assert trainer.scored.count(("reference", 4)) == len(measured)


def all_die_in_step_2(engines: Engines, trainer: Trainer) -> None:
    update = trainer.update

    def dies(batches: list[Update], step: int) -> dict[str, float]:
        if step == 2:  # with batches 3 and 4 under way
            engines.numbers, engines.loading = [], [7]
            for key in engines.asked:
                engines.done.pop(key)
                engines.under_way[key] = SampleRequest(prompt("again"), "0")
        return update(batches, step)

    trainer.update = dies  # type: ignore[method-assign]


def test_engines_that_come_back_when_none_was_left_get_the_weights_of_the_step_and_continue() -> None:
    loop, engines, trainer, diary, _ = make(4, 0, total=8)
    all_die_in_step_2(engines, trainer)
    loop.run(Position())
    assert trainer.synced == [0, 2, 4]
    assert trainer.connected == [[0], [7]]
    assert [row["version"] for row in diary.rows] == [0, 0, 2, 2, 4, 4, 4, 4]


def test_a_run_continues_from_a_checkpoint_with_samples_of_engines_restored_off_schedule() -> None:
    loop, engines, trainer, diary, saved = make(4, 0, total=8, save_every=3)
    all_die_in_step_2(engines, trainer)
    loop.run(Position())
    position, pending = saved[0]
    assert (position.step, pending.facts["revived"]) == (3, [2])  # batch 4 was spoken by version 2, the schedule says 0
    again, more, _, resumed, _ = make(4, 0, total=8, sampled=4, restored=[2])
    more.done = sampled_groups(pending.sections)
    again.run(replace(position))
    assert [row["version"] for row in resumed.rows] == [row["version"] for row in diary.rows[3:]] == [2, 4, 4, 4, 4]


def run_rows(folder: Path, total: int, reference: bool = True) -> tuple[Trainer, Diary]:
    """Three rows of two answers, two rows a step, and a held-out one measured every four steps."""
    rows = [Example(prompt(f"row {i}"), ((7, 8), (9 + i,))) for i in range(3)]
    diary, trainer = Diary(), Trainer(Engines())
    objective = DPO(beta=0.1, label_smoothing=0.0)
    references = References(trainer.score_reference, ReferenceScores(folder, {}, None), lambda _: None)
    source = RecordedSource(
        examples=rows, held_out=[Example(prompt("held out"), ((1,), (2,)))], prompt_sampler=PromptSampler(3, 2, seed=1),
        references=references if reference else None, learners=trainer,
        objective=objective, terms=terms(off_policy=False),
        eval_every=4, total_steps=total,
    )  # fmt: skip
    Loop(
        Plan(total, 0, False, "behavior", 1, int(reference)),
        objective,
        terms(off_policy=False),
        source,
        trainer,
        diary,
        lambda *_: True,
        lambda _: False,
        lambda: False,
        lambda: None,
    ).run(Position())
    return trainer, diary


def test_recorded_rows_are_scored_by_the_reference_when_first_needed_and_held_out_ones_measured_on_time(tmp_path: Path) -> None:
    trainer, diary = run_rows(tmp_path, 7)
    # Two rows of two answers in step 1, the third in step 2 beside one that is known; the held-out one after step 4.
    assert trainer.scored == [("reference", 4), ("reference", 2), ("reference", 2)]
    assert [row["step"] for row in diary.rows if "eval/preference/margin" in row] == [4, 7]
    assert [row["data/epoch"] for row in diary.rows] == [0, 1, 1, 2, 3, 3, 4]
    assert "eval/actor/entropy" not in diary.rows[-1]


def test_a_run_that_goes_on_scores_no_row_twice(tmp_path: Path) -> None:
    assert run_rows(tmp_path, 1)[0].scored == [("reference", 4), ("reference", 2)]  # and the held-out one at the last step
    assert run_rows(tmp_path, 7)[0].scored == [("reference", 2)]


def test_rows_that_need_no_reference_are_not_scored_by_one(tmp_path: Path) -> None:
    trainer, diary = run_rows(tmp_path, 4, reference=False)
    assert not trainer.scored
    assert "eval/preference/margin" in diary.rows[-1]


def test_a_row_keeps_its_own_reference_whatever_the_batch_it_comes_in(tmp_path: Path) -> None:
    def own_ids(sequences: SequenceTable) -> Tensor:
        rows = sequences.padded()
        return rows.token_ids * rows.mask

    rows = [Example(prompt("a", 1), ((7, 8), (9,))), Example(prompt("b", 3), ((1,), (2, 3, 4)))]
    references = References(own_ids, ReferenceScores(tmp_path, {}, None), lambda _: None)
    references.of(rows, tabulate_examples(rows))
    turned = [rows[1], rows[0]]
    sequences = tabulate_examples(turned)
    testing.assert_close(references.of(turned, sequences), own_ids(sequences))


@pytest.mark.parametrize(("interval", "every", "steps"), [
    (20, 20, [20, 40, 60, 65]),
    (20, 25, [40, 60, 65]),  # 25 and 50 fall between two synchronizations; 60 is the first after 50
    (1, 25, [25, 50, 65]),
    (20, 1, [20, 40, 60, 65]),
    (300, 10, [65]),
])  # fmt: skip
def test_held_out_prompts_are_answered_by_the_weights_of_their_step_and_after_the_last(
    interval: int, every: int, steps: list[int]
) -> None:
    held: list[int] = []
    evaluation = Evaluation(every, interval, 65, lambda asked: asked() or held.append(engines.version) or {"eval/x/avg@1": 0.5})  # type: ignore[func-returns-value]
    loop, engines, _, diary, _ = make(interval, 0, 65, evaluation=evaluation)
    loop.run(Position())
    assert [row["step"] for row in diary.rows if "eval/x/avg@1" in row] == steps
    assert held == steps


def test_a_step_that_is_the_best_so_far_is_saved() -> None:
    loop, _, _, _, saved = make(1, 0, 6, save_every=4, asked_to_save=lambda metrics: metrics["step"] in (2, 3))
    loop.run(Position())
    assert [position.step for position, _ in saved] == [2, 3, 4, 6]


def test_a_run_that_is_asked_to_stop_saves_the_step_that_it_is_at_and_ends() -> None:
    loop, _, trainer, diary, saved = make(4, 0, 20, stop=6)
    with pytest.raises(StoppedEarly):
        loop.run(Position())
    assert trainer.updates == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in diary.rows] == [1, 2, 3, 4, 5, 6]
    (position, pending) = saved[0]
    assert (len(saved), position.step) == (1, 6)
    assert sorted(pending.sections) == ["batch_7", "batch_8"]  # sampled already, and not to be sampled again


def stopped_while_it_waits(step: int) -> tuple[list[dict[str, float]], Saved]:
    """A run whose samplers are slow, told to end in the update of `step`; what it wrote down and saved."""
    loop, engines, trainer, diary, saved = make(4, 0, total=12)
    engines.slow = {1}
    learn = trainer.update

    def update(batches: list[Update], now: int) -> dict[str, float]:
        engines.stopping = now == step
        return learn(batches, now)

    trainer.update = update  # type: ignore[method-assign]
    with pytest.raises(StoppedEarly):
        replace(loop, asked_to_stop=lambda: engines.stopping).run(Position())
    assert len(engines.waited_idle) == 1  # not for ever
    return diary.rows, saved


def test_a_run_that_is_to_end_keeps_what_its_samplers_are_at_as_requests() -> None:
    rows, ((position, pending),) = stopped_while_it_waits(6)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert position.step == 6
    assert sorted(pending.sections) == ["batch_7", "batch_8"]
    assert pending.facts["again"] == [[7, 1], [8, 1]]


def test_open_requests_are_made_again_and_sampled_by_the_weights_of_the_checkpoint() -> None:
    _, ((position, pending),) = stopped_while_it_waits(6)
    again = [(batch, place) for batch, place in pending.facts["again"]]
    loop, engines, trainer, diary, _ = make(4, 0, total=12, sampled=8)
    assert isinstance(loop.source, OnlineSource)
    assert isinstance(loop.source.samplers, LockstepSampler)
    loop.source.samplers.again = again
    engines.done = sampled_groups(pending.sections, again)
    assert sorted(engines.done) == [(7, 0), (8, 0)]
    loop.run(replace(position))
    assert engines.log[:2] == [(7, 1), (8, 1)]
    assert engines.log[2:] == [(batch, place) for batch in range(9, 13) for place in range(2)]
    assert trainer.synced == [6, 8]
    assert [row["offpolicy/lag_max"] for row in diary.rows] == [2, 3, 0, 1, 2, 3]  # the others of 7 and 8 are of version 4
    assert [row["offpolicy/lag_mean"] for row in diary.rows[:2]] == [(2 + 0) / 2, (3 + 1) / 2]


def test_a_run_that_is_asked_to_end_while_it_waits_for_a_batch_saves_the_step_before_once() -> None:
    loop, engines, trainer, _, saved = make(1, 0, total=12, save_every=2)
    engines.slow = {1}

    def told(step: int) -> dict[str, float]:
        engines.stopping = step == 3  # the synchronization after step 3 waits for nothing, and batch 4 never comes
        return {}

    assert isinstance(loop.source, OnlineSource)
    object.__setattr__(loop.source, "learned", lambda step: type(loop.source).learned(loop.source, step) | told(step))  # type: ignore[attr-defined]
    with pytest.raises(StoppedEarly):
        loop.run(Position())
    assert trainer.updates == [1, 2, 3]
    assert [position.step for position, _ in saved] == [2, 3]
    assert saved[-1][1].facts["again"] == [[4, 1]]

    loop, engines, trainer, _, saved = make(1, 0, total=12)
    engines.slow, engines.stopping = {1}, True
    with pytest.raises(StoppedEarly):
        loop.run(Position())  # before the first step there is nothing to save
    assert (trainer.updates, saved) == ([], [])


def test_the_time_of_an_update_is_without_scoring_advantages_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, engines, trainer, diary, _ = make(1, 0, total=2)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    give, score, learn = engines.take, trainer.score_reference, trainer.update

    def taking(seconds: float) -> None:
        clock[0] += seconds

    engines.take = lambda key: taking(1.0) or give(key)  # type: ignore[method-assign,func-returns-value]
    trainer.update = lambda batches, step: taking(4.0) or learn(batches, step)  # type: ignore[method-assign,func-returns-value]
    trainer.score_reference = lambda sequences: taking(2.0) or score(sequences)  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    last = diary.rows[-1]  # after it no weights are sent: 2 groups, a reference, an update
    names = ("timing_s/wait_rollout", "timing_s/score", "timing_s/update", "timing_s/step", "idle/learner_frac")
    assert [last[name] for name in names] == [2.0, 2.0, 4.0, 8.0, 0.25]
