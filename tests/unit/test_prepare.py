"""What is refused before anything is started: checkpoints of other runs, records without what an algorithm needs."""

import json
from pathlib import Path

import pytest
from test_settings import compose

from rlopt.errors import RloptError
from rlopt.prepare import _find_resume, _prepare_run, _why_logprobs, make_objective, make_terms


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["+algo=grpo"], "takes ratios against them"),
        (["+algo=reinforce"], None),
        (["+algo=reinforce", "algo.kl.coef=0.1"], None),
        (
            ["+algo=reinforce", "algo.kl.coef=0.1", "algo.kl.place=reward"],
            "algo.kl.place=reward takes their KL from the reward",
        ),
        (
            ["+algo=reinforce", "algo.kl.coef=0.1", "algo.kl.estimator=k3_unbiased"],
            "algo.kl.estimator=k3_unbiased weighs by them",
        ),
        (["+algo=reinforce", "algo.dual_clip=3.0"], "algo.dual_clip bounds ratios against them"),
    ],
)
def test_behavior_log_probabilities_are_needed_by_all_that_reads_them(overrides: list[str], why: str | None) -> None:
    config = compose(*overrides)
    said = _why_logprobs(config, make_objective(config), make_terms(config))
    assert said == why or (why and said and why in said)


def checkpoint_of(run: Path) -> Path:
    folder = run / "checkpoints" / "step_3"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"step": 3, "files": {}}))
    (folder / "state.json").write_text(json.dumps({"position": {"step": 3}, "wandb_id": "first"}))
    return folder


def test_a_checkpoint_goes_on_as_the_same_run_in_its_folder_and_as_another_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    folder = checkpoint_of(first)
    here = compose("+algo=grpo", "run.dir=first")
    assert _prepare_run(here, Path("first"), _find_resume(here, Path("first")))["wandb_id"] == "first"
    elsewhere = compose("+algo=grpo", "run.dir=second", f"run.resume={folder}")
    state = _prepare_run(elsewhere, second, _find_resume(elsewhere, second))
    assert (state["position"], state["wandb_id"] != "first") == ({"step": 3}, True)


def test_a_checkpoint_of_another_run_does_not_go_on_where_a_run_stands(tmp_path: Path) -> None:
    folder, stands = checkpoint_of(tmp_path / "first"), tmp_path / "second"
    stands.mkdir()
    (stands / "config.yaml").write_text("{}")
    with pytest.raises(
        RloptError, match=r"run.resume=.*step_3: is no checkpoint of .*second, which holds a run; choose another"
    ):
        _find_resume(compose("+algo=grpo", f"run.resume={folder}"), stands)
