"""How `model.dtype=auto` is decided."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import compose
from rich.console import Console

from rlopt.models.loading import Shape
from rlopt.run.precision import bfloat16_gain, choose, dtype_of
from rlopt.run.resume import continued, find_resume, write_config
from rlopt.run.validate import dry_run

MIDDLE = Shape(7_000_000, 7_000_000, layers=6, hidden=256, intermediate=1152, kv_heads=4, head_dim=64, vocabulary=64)
SMALL = replace(MIDDLE, parameters=100_000)


def not_asked(hidden: int, intermediate: int) -> float:
    raise AssertionError("there is nothing to measure")


@pytest.mark.parametrize(
    ("gain", "name", "why"),
    [
        (1.9, "bfloat16", "auto: bfloat16 multiplies its matrices 1.9 times as fast as float32 here"),
        (1.2, "float32", "auto: bfloat16 multiplies its matrices 1.2 times as fast as float32 here, and has to by 1.3"),
    ],
)
def test_bfloat16_is_taken_on_cpus_that_are_measured_to_be_enough_quicker_in_it(gain: float, name: str, why: str) -> None:
    asked = []

    def measured(hidden: int, intermediate: int) -> float:
        asked.append((hidden, intermediate))
        return gain

    chosen = choose(compose("+algo=grpo"), MIDDLE, None, measured)
    assert (chosen.name, chosen.why, asked) == (name, why, [(256, 1152)])
    assert chosen.dtype == getattr(torch, name)


@pytest.mark.parametrize(
    ("keys", "shape", "kept", "name"),
    [
        (["model.dtype=bfloat16"], SMALL, {"model": {"dtype": "float32"}}, "bfloat16"),  # a fork that asks for another
        ([], MIDDLE, {"model": {"dtype": "bfloat16"}}, "bfloat16"),
        ([], MIDDLE, {"model": {"dtype": "auto"}, "cluster": {"gpus_per_learner": 0.0}}, "float32"),  # of an earlier rlopt
        (["cluster.gpus_per_learner=1"], MIDDLE, {"model": {"dtype": "float32"}}, "float32"),
        (["cluster.gpus_per_learner=1"], MIDDLE, None, "bfloat16"),
        (["learner.zero_stage=0"], MIDDLE, None, "float32"),
        ([], SMALL, None, "float32"),
        (["cluster.address=auto"], MIDDLE, None, "float32"),
    ],
)
def test_nothing_is_measured_where_something_else_decides(
    keys: list[str], shape: Shape, kept: dict[str, Any] | None, name: str
) -> None:
    assert choose(compose("+algo=grpo", *keys), shape, kept, not_asked).name == name


def test_a_run_that_goes_on_keeps_the_dtype_that_its_folder_says(tmp_path: Path) -> None:
    keys = ["+algo=grpo", f"run.dir={tmp_path}"]
    write_config(compose(*keys, "model.dtype=bfloat16"), tmp_path, None)  # as `validate` writes it, decided
    assert find_resume(compose(*keys), tmp_path) is None  # auto is no other dtype
    kept = continued(tmp_path, None)
    assert kept is not None
    assert choose(compose(*keys), MIDDLE, kept, not_asked).name == "bfloat16"


def test_a_fork_keeps_the_dtype_of_the_checkpoint_that_it_begins_with(tmp_path: Path) -> None:
    first = tmp_path / "first"
    write_config(compose("+algo=grpo", f"run.dir={first}", "model.dtype=bfloat16"), first, None)
    kept = continued(tmp_path / "fork", first / "checkpoints" / "step_2")
    assert kept is not None
    assert dtype_of(kept) == "bfloat16"
    assert continued(tmp_path / "fork", None) is None


def test_measuring_leaves_torchs_random_numbers_and_threads_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert bfloat16_gain(8, 16) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_plan_says_the_dtype_and_why(tmp_path: Path) -> None:
    plan = dict(dry_run(compose("+algo=grpo", f"run.dir={tmp_path}"), Console(quiet=True)))
    assert plan["dtype"] == "float32 (auto: so small a model is no quicker in bfloat16)"
