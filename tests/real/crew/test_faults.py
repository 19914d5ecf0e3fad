"""Synchronisations that go wrong on the real stack, each told at the very sync where it happens, by engine, tensor and version.

The engines of `crews` can be told to spoil what they receive.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import ray
from crews import instruct

from rlopt.core.errors import RloptError
from rlopt.data.prompt_sampler import PromptSampler
from rlopt.run import workers
from rlopt.weight_sync.synchronizer import Synchronizer, canary_texts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


class Notes:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **facts: Any) -> None:
        self.events.append((kind, facts))

    def step(self, *_: Any) -> None: ...


@pytest.fixture
def sync(crew: workers.RunWorkers, home: Path) -> tuple[Synchronizer, Notes]:
    notes = Notes()
    assert crew.engines
    crew.engines.report = notes.event
    texts = canary_texts(crew._prepared.data.prompts, 4)
    instruct(crew, crew._prepared, home / "fresh")
    made = Synchronizer(crew.learners, crew.engines, texts, True, 1e-4, 1, notes, lambda: 2)
    made.to(0)
    notes.events.clear()
    crew._ranks.call("push", [1e-3])  # type: ignore[union-attr]
    return made, notes


def spoil(crew: workers.RunWorkers, how: str, times: int) -> None:
    """Have the second engine spoil what it gets."""
    assert crew.engines
    ray.get(list(crew.engines.handles.values())[1].spoil.remote(how, times))


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("corrupt", r"model\.\S+ arrived changed"),
        ("stale", r"model\.\S+ arrived changed"),
        ("dropped", r"model\.\S+ did not arrive"),
        ("deaf", r"model\.\S+ arrived changed"),
    ],
)
def test_a_fault_is_reported_at_its_sync_with_engine_and_tensor_and_cured_by_sending_again(
    crew: workers.RunWorkers, sync: tuple[Synchronizer, Notes], how: str, what: str
) -> None:
    made, notes = sync
    spoil(crew, how, times=1)
    metrics = made.to(1)
    assert [kind for kind, _ in notes.events] == ["sync_fault", "sync"]
    fault = notes.events[0][1]
    assert crew.engines
    assert (fault["version"], fault["engine"], fault["attempt"]) == (1, sorted(crew.engines.handles)[1], 1)
    assert re.match(what, fault["why"]), fault
    assert metrics["sync/faults"] == 1
    assert metrics["sync/canary_abs_diff"] < 1e-4  # and now it has them


def test_a_fault_that_stays_ends_the_run_by_engine_tensor_and_version(
    crew: workers.RunWorkers, sync: tuple[Synchronizer, Notes]
) -> None:
    made, _ = sync
    spoil(crew, "corrupt", times=3)
    with pytest.raises(
        RloptError, match=r"sync of version 1: engine \d+: model\.\S+ arrived changed.*sent 3 times without success"
    ):
        made.to(1)


def test_an_optimizer_that_moved_without_changing_a_weight_is_an_error(
    crew: workers.RunWorkers, sync: tuple[Synchronizer, Notes]
) -> None:
    made, _ = sync
    made.to(1)
    crew._ranks.call("push", [0.0])  # type: ignore[union-attr]
    with pytest.raises(
        RloptError, match=r"sync of version 2: the optimizer moved, by a gradient norm of up to 1.0e\+00, and no"
    ):
        made.to(2)


def test_engines_are_lost_replaced_removed_and_added_and_all_samples_stay_the_same(
    crew: workers.RunWorkers, sync: tuple[Synchronizer, Notes]
) -> None:
    made, notes = sync
    engines = crew.engines
    assert engines
    made.to(1)
    prompt_sampler = PromptSampler(len(crew._prepared.data.prompts), 12, 5)
    requests = prompt_sampler.requests(1, crew._prepared.data.prompts, 0)

    def sample(kill: bool) -> list[list[list[int]]]:
        keys = [(1, place) for place in range(12)]
        second = list(engines.handles.values())[-1]
        if kill:  # while it is at its samples
            ray.get(second.meddle.remote("slow sampler"))
        for key, request in zip(keys, requests, strict=True):
            engines.ask(key, request)
        if kill:
            ray.kill(second)
        while not all(key in engines.done for key in keys):
            engines.wait(60.0)
        return [[s.token_ids.tolist() for s in engines.take(key).samples] for key in keys]

    whole = sample(kill=False)
    assert sample(kill=True) == whole
    assert notes.events[-1][0] == "engine_lost"
    assert len(engines.handles) == 1
    engines.join_all()
    assert len(engines.handles) == 2
    notes.events.clear()
    made.to(1)
    assert notes.events[-1][1]["engines"] == sorted(engines.handles)
    assert sample(kill=False) == whole
    made.wanted = lambda: 1
    made.to(1)
    assert len(engines.handles) == 1
    assert sample(kill=False) == whole
    made.wanted = lambda: 2
    made.to(1)
    engines.join_all()
    made.to(1)
    assert len(engines.handles) == 2
    assert sample(kill=False) == whole
