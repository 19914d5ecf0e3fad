"""The command line of `rlopt.evaluate`: what it takes over from a run, and what it refuses."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from builders import compose as compose_run
from builders import composed
from rich.console import Console

from rlopt.config.commands import EvaluateJob
from rlopt.core.errors import RloptError
from rlopt.evaluate import of_run, typed
from rlopt.evaluation.runner import evaluate


def compose(*overrides: str, search: Path | None = None) -> EvaluateJob:
    where = [f"hydra.searchpath=[file://{search}]", "+of=run"] if search else []
    return typed(composed("evaluate", *where, *overrides))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints, of which the first is the best."""
    for step in (5, 10):
        (tmp_path / "checkpoints" / f"step_{step}" / "hf").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step}" / "manifest.json").write_text('{"files": {}}')
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps({"step": 5, "metric": "m", "value": 1.0}))
    sampling = ["data.template='Q: {prompt}\\nA:'", "rollout.max_new_tokens=40", "rollout.sleep=true"]
    config = compose_run("+algo=grpo", "run.seed=7", *sampling)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    return tmp_path


def test_the_embedded_task_is_evaluated_on_problems_that_nobody_trains_on() -> None:
    job = compose("model.path=tiny_l")
    assert (job.model.path, job.data.eval, job.eval.samples, job.eval.greedy) == ("tiny_l", "arithmetic", 8, True)


def test_a_run_is_evaluated_as_it_was_trained_but_for_what_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "search" / "of").mkdir(parents=True)
    config = of_run(str(run), "best")
    (tmp_path / "search" / "of" / "run.yaml").write_text("# @package _global_\n" + yaml.safe_dump(config))
    job = compose("eval.samples=3", search=tmp_path / "search")
    assert job.model.path == str(run / "checkpoints" / "step_5" / "hf")
    assert (job.run.seed, job.data.template, job.rollout.max_new_tokens) == (7, r"Q: {prompt}\nA:", 40)
    assert (job.data.eval, job.eval.samples) == ("arithmetic", 3)


def test_the_latest_checkpoint_is_taken_or_that_of_a_step(run: Path) -> None:
    assert of_run(str(run), "latest")["model"]["path"].endswith("step_10/hf")
    assert of_run(str(run), "5")["model"]["path"].endswith("step_5/hf")
    with pytest.raises(RloptError, match=r"has no checkpoint 7; one of 5, 10, latest"):
        of_run(str(run), "7")
    with pytest.raises(RloptError, match="holds no complete checkpoint"):
        of_run("/nowhere", "latest")


@pytest.mark.parametrize(("override", "message"), [
    ("data.eval=null", "data.eval=None: names nothing to evaluate on"),
    ("eval.greedy=false eval.samples=0", "eval.greedy=False: with eval.samples=0 nothing is answered"),
    ("eval.temperature=0", "eval.temperature=0: must be above 0; eval.greedy=true answers greedily"),
    ("eval.limit=0", "eval.limit=0: must be at least 1 prompt"),
    ("rollout.sleep=true", "rollout.sleep=True: there is no learner here to make room for; leave it out"),
    ("cluster.gpus_per_learner=1.0", "cluster.gpus_per_learner=1.0: there is no learner here"),
    ("evaluate.rounds=0", "evaluate.rounds=0: must be at least 1"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(RloptError) as refusal:
        compose(*override.split())
    assert str(refusal.value).startswith(message)


def test_numbers_that_could_not_be_written_are_refused_before_any_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = compose("model.path=/nowhere", f"evaluate.out={tmp_path}/file/numbers.json")
    with pytest.raises(RloptError, match=r"^evaluate.out=.*numbers.json: cannot be written \(.*\); choose another place"):
        evaluate(job, Console())
