"""Synchronisations that go wrong on the real stack, each told at the very sync where it happens, by engine, tensor and version.

Two vLLM engines and a DeepSpeed learner, whose engines can be told to spoil what they receive.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import ray
from rich.console import Console

from rlopt import launch, prepare, rollout
from rlopt.errors import RloptError
from rlopt.learner import LearnerSetup, LearnerWorker
from rlopt.rollout import RolloutWorker
from rlopt.settings import conf_dir, typed
from rlopt.sync import Synchroniser, canary_texts
from rlopt.weights import write_shared

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


class Spoiler(RolloutWorker):
    """An engine that spoils its weights in the way and as many times as it is told to."""

    def spoil(self, how: str, times: int) -> None:
        self.how, self.times = how, times

    async def start_weight_update(self) -> None:
        self.spoiling = getattr(self, "times", 0) > 0
        self.times = getattr(self, "times", 0) - 1
        self.number = 0
        if not (self.spoiling and self.how == "deaf"):
            await super().start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        self.number += 1
        data = Path(update_info["path"]).read_bytes()
        before, self.kept = getattr(self, "kept", {}), {**getattr(self, "kept", {}), self.number: data}
        if self.spoiling and (self.how == "deaf" or (self.how == "dropped" and self.number == 2)):
            return
        if self.spoiling and self.number == 2:
            changed = before[2] if self.how == "stale" else data[:40] + bytes([data[40] ^ 1]) + data[41:]
            update_info = {**update_info, "path": write_shared(changed)}  # the other engine reads the file as it was sent
        await super().update_weights(update_info)

    async def finish_weight_update(self, weight_version: str) -> None:
        if not (self.spoiling and self.how == "deaf"):
            await super().finish_weight_update(weight_version)


class Buckets(LearnerWorker):
    """A learner that sends in several buckets, and can be moved a little."""

    def __init__(self, setup: LearnerSetup, *rest: Any) -> None:
        super().__init__(LearnerSetup(**{**vars(setup), "bucket_bytes": 100_000}), *rest)

    def nudge(self, by: float) -> None:
        for _, parameter in self._named():
            parameter.data += by
        self._moved = 1.0


class Notes:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **facts: Any) -> None:
        self.events.append((kind, facts))

    def step(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.Crew]:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = typed(
            hydra.compose("config", ["+algo=grpo", "rollout.engines=2", f"run.dir={tmp_path_factory.mktemp('faults')}/run"])
        )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "LearnerWorker", Buckets)
        patch.setattr(rollout, "RolloutWorker", Spoiler)
        started = launch.Crew(prepare.prepare(config, Console(quiet=True)))
        started.start()
        started.join()
    yield started
    started.close()


@pytest.fixture
def sync(crew: launch.Crew) -> tuple[Synchroniser, Notes]:
    notes = Notes()
    assert crew.fleet
    crew.fleet.report = notes.event
    texts = canary_texts(crew._prepared.prompts, 4)
    crew._ranks.call("nudge", [1e-3])  # type: ignore[union-attr]
    made = Synchroniser(crew.learners, crew.fleet, texts, True, 1e-4, 1, notes)
    made.to(0)
    notes.events.clear()
    crew._ranks.call("nudge", [1e-3])  # type: ignore[union-attr]
    return made, notes


def spoil(crew: launch.Crew, how: str, times: int) -> None:
    """Have the second engine spoil what it gets."""
    assert crew.fleet
    ray.get(list(crew.fleet.handles.values())[1].spoil.remote(how, times))


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("corrupt", r"model\.\S+ arrived changed"),
        ("stale", r"model\.\S+ arrived changed"),
        ("dropped", r"model\.\S+ did not arrive"),
        ("deaf", r"model\.\S+ arrived changed"),
    ],
)
def test_a_fault_is_told_at_its_sync_by_engine_and_tensor_and_cured_by_sending_again(
    crew: launch.Crew, sync: tuple[Synchroniser, Notes], how: str, what: str
) -> None:
    made, notes = sync
    spoil(crew, how, times=1)
    metrics = made.to(1)
    assert [kind for kind, _ in notes.events] == ["sync_fault", "sync"]
    fault = notes.events[0][1]
    assert (fault["version"], fault["engine"], fault["attempt"]) == (1, 1, 1)
    assert re.match(what, fault["why"]), fault
    assert metrics["sync/faults"] == 1
    assert metrics["sync/canary_abs_diff"] < 1e-4  # and now it has them


def test_a_fault_that_stays_ends_the_run_by_engine_tensor_and_version(
    crew: launch.Crew, sync: tuple[Synchroniser, Notes]
) -> None:
    made, _ = sync
    spoil(crew, "corrupt", times=3)
    with pytest.raises(
        RloptError, match=r"sync of version 1: engine 1: model\.\S+ arrived changed.*sent 3 times, each in vain"
    ):
        made.to(1)


def test_an_optimizer_that_moved_without_changing_a_weight_is_told(crew: launch.Crew, sync: tuple[Synchroniser, Notes]) -> None:
    made, _ = sync
    made.to(1)
    crew._ranks.call("nudge", [0.0])  # type: ignore[union-attr]
    with pytest.raises(
        RloptError, match=r"sync of version 2: the optimizer moved, by a gradient norm of up to 1.0e\+00, and no"
    ):
        made.to(2)


def test_an_engine_that_is_killed_is_replaced_and_its_prompts_are_sampled_alike(
    crew: launch.Crew, sync: tuple[Synchroniser, Notes]
) -> None:
    made, notes = sync
    fleet = crew.fleet
    assert fleet
    made.to(1)
    dealer = launch.Dealer(len(crew._prepared.prompts), 12, 5)
    deals = dealer.deals(1, crew._prepared.prompts, 0)

    def sample(kill: bool) -> list[list[list[int]]]:
        keys = [(1, place) for place in range(12)]
        for key, deal in zip(keys, deals, strict=True):
            fleet.ask(key, deal)
        if kill:
            ray.kill(list(fleet.handles.values())[1])
        while not all(key in fleet.done for key in keys):
            fleet.wait(60.0)
        return [[s.token_ids.tolist() for s in fleet.hand_over(key).samples] for key in keys]

    whole = sample(kill=False)
    assert sample(kill=True) == whole
    assert notes.events[-1][0] == "engine_lost"
    assert len(fleet.handles) == 1
    fleet.join(wait=True)
    notes.events.clear()
    made.to(1)
    assert notes.events[-1][1]["engines"] == [0, 2]
    assert sample(kill=False) == whole
