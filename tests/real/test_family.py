"""Every algorithm on the real stack: one vLLM engine and one DeepSpeed learner, taken over by one after another.

Each trains on groups that the engine samples (or on recorded rows) for two steps, synchronises, and passes the canary.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import ray
from rich.console import Console

from rlopt import launch, prepare
from rlopt.learner import Learners, LearnerWorker
from rlopt.loop import Position
from rlopt.objectives.core import Objective, Terms
from rlopt.settings import algorithms, conf_dir, typed
from rlopt.types import Group

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

ROWS = [
    {
        "prompt": f"{a}+{b}*2=",
        "initial_reason_steps": f"Step 1: {b}*2={2 * b}\n",
        "chosen": f"Step 2: {a}+{2 * b}={a + 2 * b}\n",
        "rejected": f"Step 2: {a}+{2 * b}={a + 2 * b + 1}\n",
        "full_chosen": f"Step 2: {a}+{2 * b}={a + 2 * b}\nAnswer: {a + 2 * b}",
        "full_rejected": f"Step 2: {a}+{2 * b}={a + 2 * b + 1}\nAnswer: {a + 2 * b + 1}",
        "answer": str(a + 2 * b),
    }
    for a in (11, 23, 35)
    for b in (3, 4, 8)
]


class Turncoat(LearnerWorker):
    """A learner that can be given another objective, so that engines need not be started for each."""

    def follow(self, objective: Objective, terms: Terms) -> None:
        self._setup = replace(self._setup, objective=objective, terms=terms)


class Notes:
    """What a run said of itself."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def step(self, metrics: Any, groups: list[Group], policy: Any) -> None:
        self.rows.append(dict(metrics))

    def event(self, kind: str, **facts: object) -> None:
        pass

    def say(self, line: str) -> None:
        pass


def prepared_for(folder: Path, *overrides: str) -> prepare.Prepared:
    small = ("data.prompts_per_step=4", "trainer.total_steps=2", f"run.dir={folder}")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return prepare.prepare(typed(hydra.compose("config", [*overrides, *small])), Console(quiet=True))


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.Crew]:
    first = prepared_for(tmp_path_factory.mktemp("family") / "run", "+algo=grpo", "algo.group_size=4")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "LearnerWorker", Turncoat)
        started = launch.Crew(first)
        started.start()
        started.join()
    yield started
    started.close()


def train(crew: launch.Crew, prepared: prepare.Prepared) -> list[dict[str, float]]:
    """Two steps of what was prepared, on the crew's engine and learner."""
    ranks = crew._ranks
    ranks.call("follow", [prepared.objective, prepared.terms])
    together = prepared.objective.traits.unit == "group"
    crew.learners = Learners(ranks, prepared.config.learner.token_budget, together, temperature=1.0)
    notes = Notes()
    loop = launch._loop(prepared, crew, notes)  # type: ignore[arg-type]
    replace(loop, save=lambda position, stock: None).run(Position())
    return notes.rows


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_trains_on_the_real_stack(name: str, crew: launch.Crew, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recorded = name in ("dpo", "sft", "step_dpo")
    overrides = (
        [f"data.train={rows}", f"data.eval={rows}", "trainer.eval_every=2"]
        if recorded
        else ["algo.group_size=4", "sync.interval=1"]
    )
    first, second = train(crew, prepared_for(tmp_path / "run", f"+algo={name}", *overrides))
    assert [first["step"], second["step"]] == [1, 2]
    assert first["actor/grad_norm"] >= 0
    assert second["actor/kl_k2"] >= 0
    if recorded:
        assert "eval/actor/pg_loss" in second
        assert ("eval/preference/margin" in second) == (name != "sft")
        assert first["actor/grad_norm"] > 0
    else:
        assert first["sync/verified"] == 1
        assert first["offpolicy/lag_max"] == second["offpolicy/lag_max"] == 0
    if name == "dapo":  # a group without signal was replaced
        assert first["reward/zero_std_frac"] == second["reward/zero_std_frac"] == 0
