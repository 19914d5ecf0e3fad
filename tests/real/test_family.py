"""Every algorithm on the real stack: one vLLM engine and one DeepSpeed learner, taken over by one after another.

Each trains on groups that the engine samples (or on recorded rows) for two steps, synchronises, and passes the canary.
"""

import json
from pathlib import Path

import pytest
from conftest import rows
from crews import SMALL, prepared_for, train

from rlopt import launch
from rlopt.settings import algorithms

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


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_trains_on_the_real_stack(name: str, crew: launch.Crew, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recorded = name in ("dpo", "sft", "step_dpo")
    overrides = (
        [f"data.train={file}", f"data.eval={file}", "trainer.eval_every=2", SMALL[0]]
        if recorded
        else [*SMALL, "sync.interval=1"]
    )
    folder = tmp_path / "run"
    train(crew, prepared_for(folder, f"+algo={name}", *overrides, "trainer.total_steps=2"))
    first, second = rows(folder / "metrics.jsonl")
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
