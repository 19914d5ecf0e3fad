"""The loop with hand-written samplers and learners: what is asked of whom, in which order, under every schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from builders import OBJECTIVE, group, prompt, sample, terms
from torch import Tensor

from rlopt.batching import pad_examples
from rlopt.data import Deal, Dealer
from rlopt.errors import RloptError
from rlopt.live import Live, LivePlan
from rlopt.loop import Loop, Plan, Position
from rlopt.objectives.dpo import DPO
from rlopt.recorded import Recorded, References
from rlopt.schedule import Schedule
from rlopt.types import Batch, Example, Group, Prompt, Sample, Sequences


@dataclass(frozen=True)
class Sent:
    bytes: int = 8
    seconds: float = 0.1


@dataclass
class Engines:
    """Samples at once, with the version it holds."""

    version: int = -1
    batches: dict[int, list[Group]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def request(self, batch: int, deals: list[Deal]) -> None:
        self.asked.append(batch)
        self.batches[batch] = [group(deal.prompt.id, (1.0, 0.0), self.version) for deal in deals]

    def take(self, batch: int) -> list[Group]:
        return self.batches.pop(batch)

    def drain(self) -> dict[int, list[Group]]:
        return dict(self.batches)

    def canary(self, prompts: list[Prompt]) -> list[list[Sample]]:
        return [[sample(2, 0.0, self.version, prompt_id=p.id) for p in prompts]]

    def busy_s(self) -> float:
        return 0.0


@dataclass
class Trainer:
    """Learns nothing; says -0.5 for every token, as the engines do, plus `gap`."""

    engines: Engines
    gap: float = 0.0
    arrives: bool = True
    updates: list[int] = field(default_factory=list)
    synced: list[int] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)

    def update(self, batches: list[Batch], step: int) -> dict[str, float]:
        self.updates.append(step)
        return {}

    def score(self, sequences: Sequences, whose: str) -> Tensor:
        self.scored.append((whose, len(sequences)))
        return torch.full(sequences.mask.shape, -0.5 + self.gap)

    def measure(self, batch: Batch) -> dict[str, float]:
        return {"preference/margin": float(len(batch)), "actor/entropy": 0.1}

    def sync(self, version: int) -> Sent:
        self.synced.append(version)
        if self.arrives:
            self.engines.version = version
        return Sent()


@dataclass
class Diary:
    rows: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def step(self, metrics: Mapping[str, float], groups: list[Group]) -> None:
        self.rows.append(dict(metrics))

    def event(self, kind: str, **facts: object) -> None:
        self.events.append(kind)


def make(
    interval: int, offset: int, total: int, save_every: int = 0, sampled: int = 0, plan: Plan | None = None
) -> tuple[Loop, Engines, Trainer, Diary, list[object]]:
    engines, diary, saved = Engines(), Diary(), []
    trainer = Trainer(engines)
    live = Live(
        plan=LivePlan(total, samples_per_step=4, verify=True, tolerance=1e-3),
        schedule=Schedule(interval, offset),
        deal=lambda batch: [Deal(prompt(f"{batch}/{i}"), "0") for i in range(2)],
        canaries=[prompt("canary")],
        rollouts=engines,
        learners=trainer,
        journal=diary,
        requested=sampled,
    )
    loop = Loop(
        plan=plan or Plan(total, save_every, anchor="behavior", minibatches=1),
        objective=OBJECTIVE,
        terms=terms(),
        source=live,
        learners=trainer,
        journal=diary,
        save=lambda position, buffer: saved.append((replace(position), dict(buffer))),
    )
    return loop, engines, trainer, diary, saved


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2), (300, 199)])
def test_every_batch_is_sampled_by_the_version_of_the_schedule(interval: int, offset: int) -> None:
    loop, engines, trainer, diary, _ = make(interval, offset, total=65)
    loop.run(Position())
    schedule = Schedule(interval, offset)
    assert [row["version"] for row in diary.rows] == [schedule.version(b) for b in range(1, 66)]
    assert [row["offpolicy/lag_max"] for row in diary.rows] == [schedule.lag(b) for b in range(1, 66)]
    assert engines.asked == list(range(1, 66))
    assert trainer.updates == list(range(1, 66))
    assert trainer.synced == [0, *range(interval, 65, interval)]


def test_samplers_run_a_whole_window_ahead_of_the_learner() -> None:
    loop, engines, trainer, _, _ = make(20, 0, total=40)
    seen: list[tuple[int, int]] = []
    update = trainer.update
    trainer.update = lambda batches, step: seen.append((step, max(engines.asked))) or update(batches, step)  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    assert seen[0] == (1, 20)
    assert seen[20] == (21, 40)


@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (20, 0), (1, 10), (4, 2), (7, 3)])
@pytest.mark.parametrize("stop", [1, 13, 20, 28])
def test_a_run_that_goes_on_from_any_checkpoint_asks_for_nothing_twice_and_skips_nothing(
    interval: int, offset: int, stop: int
) -> None:
    whole, engines, _, diary, saved = make(interval, offset, total=45, save_every=stop)
    whole.run(Position())
    position, buffer = saved[0]
    assert position.step == stop
    sampled = max([stop, *buffer])
    again, more_engines, _, more_diary, _ = make(interval, offset, total=45, sampled=sampled)
    more_engines.batches = dict(buffer)
    again.run(replace(position))
    assert more_engines.asked == [batch for batch in engines.asked if batch > sampled]
    keys = ("step", "version", "offpolicy/lag_max", "samples_seen", "tokens_seen")
    assert [[row[key] for key in keys] for row in more_diary.rows] == [[row[key] for key in keys] for row in diary.rows[stop:]]


def test_a_sync_after_which_engine_and_learner_differ_ends_the_run_with_both_numbers() -> None:
    loop, _, trainer, diary, _ = make(1, 0, total=3)
    trainer.gap = 0.01
    with pytest.raises(RloptError, match=r"sync of version 0: engine and learner differ by 1.00e-02 nats .* allows 1e-03"):
        loop.run(Position())
    assert diary.events == ["sync"]


def test_an_engine_that_keeps_its_old_version_is_named() -> None:
    loop, engines, trainer, _, _ = make(2, 0, total=5)
    engines.version = 0
    trainer.arrives = False
    with pytest.raises(RloptError, match="sync of version 2: engine 0 still answers with version 0"):
        loop.run(Position())


def test_a_sample_of_another_version_than_the_schedules_ends_the_run() -> None:
    loop, engines, _, _, _ = make(2, 0, total=5)
    take = engines.take
    engines.take = lambda batch: [group("odd", version=1)] if batch == 3 else take(batch)  # type: ignore[method-assign]
    with pytest.raises(RloptError, match=r"step 3: a sample of prompt odd was spoken by versions \[1\], the schedule says 2"):
        loop.run(Position())


def test_a_finished_run_is_extended_only_where_its_weights_are_still_there() -> None:
    loop, _, _, _, saved = make(20, 0, total=30)
    loop.run(Position())
    longer, _, _, _, _ = make(20, 0, total=60, sampled=30)
    with pytest.raises(RloptError, match="batch 31 is to be sampled by version 20, and the engines hold 30"):
        longer.run(saved[-1][0])


def test_the_policy_is_scored_once_a_step_where_the_anchor_is_proximal_and_every_update_gets_whole_groups() -> None:
    loop, _, trainer, _, _ = make(1, 0, total=3, plan=Plan(3, 0, anchor="proximal", minibatches=2))
    given: list[list[Batch]] = []
    trainer.update = lambda batches, step: given.append(batches) or {}  # type: ignore[method-assign,func-returns-value]
    loop.run(Position())
    assert [len(batches) for batches in given] == [2, 2, 2]
    assert {len(batch) for batches in given for batch in batches} == {2}
    steps = [entry for entry in trainer.scored if entry[1] == 4]  # the others are canaries
    assert steps == [("policy", 4), ("reference", 4)] * 3


def test_recorded_rows_are_scored_by_the_reference_once_and_held_out_ones_measured_on_time() -> None:
    rows = [Example(prompt(f"row {i}"), ((7, 8), (9,))) for i in range(3)]
    diary, trainer = Diary(), Trainer(Engines())
    objective = DPO(beta=0.1, label_smoothing=0.0)
    source = Recorded(
        examples=rows, held_out=[Example(prompt("held out"), ((1,), (2,)))], dealer=Dealer(3, 2, seed=1),
        references=References(trainer, lambda *_: None), learners=trainer, objective=objective, terms=terms(off_policy=False),
        eval_every=4, total_steps=7,
    )  # fmt: skip
    Loop(Plan(7, 0, "behavior", 1), objective, terms(off_policy=False), source, trainer, diary, lambda *_: None).run(Position())
    assert trainer.scored == [("reference", 2 * 4)]  # two answers each of three rows and the held-out one
    assert [row["step"] for row in diary.rows if "eval/preference/margin" in row] == [4, 7]
    assert [row["data/epoch"] for row in diary.rows] == [0, 1, 1, 2, 3, 3, 4]
    assert "eval/actor/entropy" not in diary.rows[-1]


def test_a_row_keeps_its_own_reference_whatever_the_batch_it_comes_in() -> None:
    @dataclass
    class Counter:
        """Says of every token its own id."""

        def score(self, sequences: Sequences, whose: str) -> Tensor:
            return sequences.token_ids * sequences.mask

        def measure(self, batch: Batch) -> dict[str, float]:
            return {}

    rows = [Example(prompt("a", 1), ((7, 8), (9,))), Example(prompt("b", 3), ((1,), (2, 3, 4)))]
    references = References(Counter(), lambda *_: None)
    references.score(rows)
    turned = [rows[1], rows[0]]
    sequences = pad_examples(turned)
    torch.testing.assert_close(references.of(turned, sequences), sequences.token_ids * sequences.mask)
