"""A synchronization that is proved: faults named by engine, sent again, and the end of the run where that cures nothing."""

import math
from collections.abc import Callable

import pytest
from builders import prompt
from fakes import Diary, Engines, Trainer

from rlopt.core.errors import RloptError
from rlopt.core.requests import EngineLogprobs
from rlopt.weight_sync.synchronizer import Synchronizer, canary_texts


def make(numbers: tuple[int, ...] = (0, 1)) -> tuple[Synchronizer, Engines, Trainer, Diary]:
    engines, diary = Engines(numbers=[*numbers]), Diary()
    trainer = Trainer(engines)
    return Synchronizer(trainer, engines, [(1, 2, 3), (4, 5)], True, 1e-3, 1, diary, lambda: 2), engines, trainer, diary


def test_a_sync_reports_its_cost_and_how_far_the_worst_engine_is_from_the_learner() -> None:
    sync, _, trainer, diary = make()
    trainer.gap = 5e-4
    metrics = sync.to(20)
    assert (sync.version, trainer.synced, trainer.sent_to) == (20, [20], [None])
    assert metrics["sync/canary_abs_diff"] == pytest.approx(5e-4, rel=1e-4)
    assert (metrics["sync/verified"], metrics["sync/faults"], metrics["sync/bytes"]) == (1, 0, 8)
    assert diary.events == ["sync"]
    assert [entry for entry in trainer.scored if entry[0] == "canary"] == [("canary", 2)]  # once for all engines


def test_an_engine_that_got_a_changed_tensor_alone_is_sent_the_weights_again_and_the_run_continues() -> None:
    sync, _, trainer, diary = make()
    trainer.faults = [{1: "lm_head.weight arrived changed"}]
    metrics = sync.to(3)
    assert trainer.sent_to == [None, [1]]
    assert metrics["sync/faults"] == 1
    assert diary.events == ["sync_fault", "sync"]
    assert diary.facts[0] == {"version": 3, "engine": 1, "attempt": 1, "why": "lm_head.weight arrived changed"}


def test_an_engine_that_nothing_cures_ends_the_run_by_its_number_and_tensor() -> None:
    sync, _, trainer, diary = make()
    trainer.faults = [{1: "norm.weight did not arrive"}] * 3
    with pytest.raises(
        RloptError, match=r"sync of version 3: engine 1: norm.weight did not arrive; sent 3 times without success"
    ):
        sync.to(3)
    assert diary.events == ["sync_fault"] * 3
    assert sync.version == -1


@pytest.mark.parametrize("gap", [0.01, math.nan])
def test_an_engine_that_differs_from_the_learner_is_sent_the_weights_again_and_then_ends_the_run(gap: float) -> None:
    sync, _, trainer, _ = make((0,))
    trainer.gap = gap
    with pytest.raises(RloptError, match=r"engine 0: differs from the learner by (1.00e-02|nan) nats .* allows 1e-03"):
        sync.to(2)
    assert trainer.sent_to == [None, [0], [0]]


def test_an_engine_that_keeps_its_old_version_is_named() -> None:
    sync, engines, trainer, _ = make((0,))
    engines.version, trainer.arrives = 0, False
    with pytest.raises(RloptError, match="sync of version 2: engine 0: still answers with version 0"):
        sync.to(2)


def test_an_engine_that_dies_is_given_up_and_the_others_continue() -> None:
    sync, engines, trainer, diary = make()
    trainer.faults, trainer.dead = [{0: "the engine died during update_weights"}], {0}
    sync.to(4)
    assert engines.lost == [(0, "the engine died during update_weights")]
    assert diary.facts[-1]["engines"] == [1]
    engines.loading = [2]
    sync.to(5)
    assert trainer.connected == [[0, 1], [1, 2]]
    sync.to(6)
    assert len(trainer.connected) == 2


def test_an_engine_that_dies_under_the_canary_prompts_is_not_a_fault_of_the_weights() -> None:
    sync, engines, _, _ = make()
    ask: Callable[..., Callable[[], dict[int, list[EngineLogprobs]]]] = engines.canary

    def one_dies(texts: list[tuple[int, ...]], numbers: list[int]) -> Callable[[], dict[int, list[EngineLogprobs]]]:
        if 0 in engines.numbers:
            engines.lose(0, "died")
        return ask(texts, [1])

    engines.canary = one_dies  # type: ignore[method-assign]
    assert sync.to(1)["sync/faults"] == 0


def test_canary_texts_are_the_middles_of_prompts_and_have_two_tokens_at_least() -> None:
    prompts = [prompt("short", 1), prompt("long", 500), prompt("plain", 3), prompt("fourth", 3)]  # tokens from 5 on
    assert canary_texts(prompts, 3) == [(5, 5), (252, 253, 254, 255, 256, 257), (5, 6, 7)]
