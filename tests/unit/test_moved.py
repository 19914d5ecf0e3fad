"""What users wrote for the release before: names in configs, modules and records that objectives import."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import compose
from test_resume import checkpoint_of

from rlopt.config.cli import current_key
from rlopt.config.compose import current_algo, normalized
from rlopt.core import user_code
from rlopt.data.rollout_log import blocks, group_from_json
from rlopt.run.resume import find_resume, write_config

OLD = """
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.objectives.advantages import centered
from rlopt.objectives.core import Traits
from rlopt.types import Average, Batch, LossOutput, Outcomes, Scores


@dataclass(frozen=True)
class Old:
    traits: ClassVar[Traits] = Traits(reads="anchor")
    average: ClassVar[Average] = "token_mean"

    def advantages(self, outcomes: Outcomes) -> Tensor:
        return centered(outcomes) + 0 * (outcomes.anchor - outcomes.behavior).sum(1) + 0 * outcomes.lottery

    def loss(self, batch: Batch, scores: Scores) -> LossOutput:
        ratio = (scores.logprobs - batch.anchor) * batch.mask
        return LossOutput(-batch.advantages * ratio.exp() * batch.mask + 0 * batch.behavior, {})
"""


@pytest.mark.parametrize("name", ["rlopt.grading:mathematics", "rlopt.grading:exact", "rlopt.arithmetic:reward"])
def test_earlier_names_of_rewards_stay_valid(name: str) -> None:
    assert user_code.load("reward.fn", name) is user_code.load("reward.fn", user_code.current_name(name))


def test_configs_of_earlier_runs_are_read_with_the_names_of_today() -> None:
    kept = {"reward": {"fn": ["rlopt.grading:boxed", "mine:f"]}, "pairs": {"split": "rlopt.arithmetic:split_steps"}}
    now = {"reward": {"fn": ["rlopt.rewards:boxed", "mine:f"]}, "pairs": {"split": "rlopt.data.arithmetic:split_steps"}}
    assert normalized(kept) == now


def test_an_objective_that_imports_earlier_modules_and_names_still_passes_the_kit(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(OLD)
    line = [sys.executable, "-m", "rlopt.objectives", "check", "old:Old"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rlopt.types is now rlopt.objectives.core" in done.stderr
    assert "Outcomes is now AdvantageInputs" in done.stderr


DATA = Path(__file__).parents[1] / "data"


def test_a_run_of_the_release_before_continues_with_the_same_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = checkpoint_of(run, step=6, batches=range(7, 21))
    shutil.copy(DATA / "config_of_0.1.0.yaml", run / "config.yaml")
    overrides = ["data.prompts_per_step=4", "algo.group_size=4", "trainer.total_steps=20", "run.record=true"]
    config = compose("+algo=grpo", *overrides, f"run.dir={run}")
    assert find_resume(config, run) == folder
    assert write_config(config, run, folder)["wandb_id"] == "first"


def test_a_record_of_the_release_before_is_read(tmp_path: Path) -> None:
    file = DATA / "experience_of_0.1.0.jsonl.gz"
    head, *rows = [json.loads(line) for block in blocks(file) for line in block.lines]
    assert (head["rlopt"], head["format"]) == ("experience", 1)
    groups = [group_from_json(row) for row in rows]
    assert len(groups) == 6 * 4
    assert {len(group.samples) for group in groups} == {4}
    assert all(sample.action_mask.all() for group in groups for sample in group.samples)


def test_an_earlier_name_of_a_default_is_the_default_where_a_key_has_no_effect() -> None:
    assert (
        compose("+algo=dpo", "data.train=x.jsonl", "reward.fn=rlopt.arithmetic:reward").reward.fn
        == "rlopt.data.arithmetic:reward"
    )


def test_earlier_keys_of_an_algorithm_work_on_the_command_line_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert current_key("algo.anchor=proximal") == "algo.old_logprobs=proximal"
    assert current_key("+algo.credit=mine:f") == "+algo.advantages=mine:f"
    assert "algo.anchor is now algo.old_logprobs" in capsys.readouterr().err
    assert current_key("run.name=algo.anchor=x") == "run.name=algo.anchor=x"


def test_earlier_keys_in_a_users_yaml_take_the_place_of_the_defaults() -> None:
    found = current_algo({"anchor": "proximal", "old_logprobs": "behavior", "credit": "mine:f", "clip": 0.2})
    assert found == {"old_logprobs": "proximal", "advantages": "mine:f", "clip": 0.2}
