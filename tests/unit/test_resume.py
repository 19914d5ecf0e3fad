"""How a run goes on from what stands in its folder, and what is refused."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from builders import compose

from rlopt.core.errors import RloptError
from rlopt.run.engine_count import ask_for, wanted_engines
from rlopt.run.resume import damaged_after, find_resume, why_left_behind, write_config


def checkpoint_of(run: Path, step: int = 3, batches: Iterable[int] = range(4, 21)) -> Path:
    """As `run` left it after `step`, with these batches sampled and not learned from."""
    folder = run / "checkpoints" / f"step_{step}"
    (folder / "buffer").mkdir(parents=True)
    for batch in batches:
        (folder / "buffer" / f"batch_{batch}.jsonl").touch()
    (folder / "manifest.json").write_text(json.dumps({"step": step, "files": {}}))
    (folder / "state.json").write_text(json.dumps({"position": {"step": step}, "wandb_id": "first", "stock": {}}))
    return folder


def test_a_checkpoint_continues_as_the_same_run_in_its_folder_and_as_another_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    folder = checkpoint_of(first)
    here = compose("+algo=grpo", "run.dir=first")
    assert write_config(here, Path("first"), find_resume(here, Path("first")))["wandb_id"] == "first"
    elsewhere = compose("+algo=grpo", "run.dir=second", f"run.resume={folder}")
    state = write_config(elsewhere, second, find_resume(elsewhere, second))
    assert (state["position"], state["wandb_id"] != "first") == ({"step": 3}, True)


def test_a_checkpoint_of_another_run_is_refused_where_a_folder_holds_a_run(tmp_path: Path) -> None:
    folder, stands = checkpoint_of(tmp_path / "first"), tmp_path / "second"
    write_config(compose("+algo=grpo"), stands, None)
    with pytest.raises(
        RloptError, match=r"run.resume=.*step_3: is not a checkpoint of .*second, which holds a run; choose another"
    ):
        find_resume(compose("+algo=grpo", f"run.resume={folder}"), stands)


def test_the_command_that_began_a_fork_continues_it_and_so_does_one_without_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, fork = checkpoint_of(tmp_path / "first"), tmp_path / "fork"
    commands = [
        compose("+algo=grpo", f"run.dir={fork}", *keys)
        for keys in ([f"run.resume={folder}"], [], ["run.resume=first/checkpoints/step_3"], [f"run.resume={folder}"])
    ]
    for config in commands:  # interrupted before its first checkpoint
        assert find_resume(config, fork) == folder or config is commands[1]
        write_config(config, fork, find_resume(config, fork))
    assert find_resume(commands[1], fork) == folder
    later = checkpoint_of(fork, 5, range(6, 21))
    for config in commands:
        assert find_resume(config, fork) == later
        write_config(config, fork, later)
    other = checkpoint_of(tmp_path / "other")
    with pytest.raises(RloptError, match="is not a checkpoint of .*fork, which holds a run"):
        find_resume(compose("+algo=grpo", f"run.dir={fork}", f"run.resume={other}"), fork)


@pytest.mark.parametrize(
    ("keys", "step", "batches", "gone"),
    [
        ([], 40, [], None),  # at a synchronization
        ([], 30, range(31, 41), None),  # interrupted
        ([], 30, [], "the weights of step 20, which are to sample batch 31, are gone"),
        (["sync.interval=1"], 40, [], None),
        (["sync.interval=1", "sync.offset=10"], 40, range(41, 51), None),
        (["sync.interval=1", "sync.offset=10"], 40, [], "the weights of step 30, which are to sample batch 41, are gone"),
        (["sync.mode=async", "sync.interval=1", "sync.max_lag=8"], 33, [], None),
    ],
)
def test_a_finished_run_is_made_longer_only_where_the_weights_to_sample_with_are_there(
    tmp_path: Path, keys: list[str], step: int, batches: Iterable[int], gone: str | None
) -> None:
    folder = checkpoint_of(tmp_path, step, batches)
    config = compose("+algo=grpo", f"run.dir={tmp_path}", "trainer.total_steps=60", *keys)
    if gone is None:
        assert find_resume(config, tmp_path) == folder
        return
    with pytest.raises(RloptError, match=rf"trainer.total_steps=60: .*{gone}; begin another run with model.path=.*/hf"):
        find_resume(config, tmp_path)


def test_a_fork_that_samples_otherwise_leaves_the_samples_of_the_first_behind(tmp_path: Path) -> None:
    first = tmp_path / "first"
    folder = checkpoint_of(first)
    write_config(compose("+algo=grpo", f"run.dir={first}"), first, None)

    def why(*keys: str) -> str | None:
        config = compose("+algo=grpo", f"run.dir={tmp_path / 'fork'}", f"run.resume={folder}", *keys)
        assert find_resume(config, tmp_path / "fork") == folder  # also where another schedule has no weights for the next batch
        return why_left_behind(config, tmp_path / "fork", folder)

    assert why() is None
    assert why("learner.lr=1e-5", "rollout.engines=2", "algo.kl.coef=0.01", "sync.verify=false", "reward.workers=2") is None
    assert why("run.seed=7") == "run.seed=7 (there: 42)"
    assert why("rollout.temperature=0.5") == "rollout.temperature=0.5 (there: 1.0)"
    assert why("sync.interval=1") == "sync.interval=1 (there: 20)"
    assert why("algo.group_size=4") == "algo.group_size=4 (there: 8)"
    assert why_left_behind(compose("+algo=grpo", "sync.interval=1"), first, folder) is None  # its own
    assert why_left_behind(compose("+algo=sft", "data.train=x"), tmp_path / "fork", folder) is None  # samples nothing
    (first / "config.yaml").unlink()
    assert why() == "no config.yaml beside them says how they were sampled"


def test_what_decides_the_numbers_of_a_run_may_not_change_and_the_machine_may(tmp_path: Path) -> None:
    write_config(compose("+algo=grpo", f"run.dir={tmp_path}"), tmp_path, None)
    config = compose("+algo=grpo", f"run.dir={tmp_path}", "trainer.total_steps=500", "cluster.cpu_threads=2", "algo.kl.every=2")
    assert find_resume(config, tmp_path) is None
    write_config(config, tmp_path, None)
    for key, said in (
        ("learner.lr=1e-5", r"learner.lr=1e-05 \(there: 0.0003\)"),
        ("run.seed=7", r"run.seed=7 \(there: 42\)"),
        ("model.dtype=bfloat16", r"model.dtype=bfloat16 \(there: float32\)"),
    ):
        with pytest.raises(RloptError, match=rf"holds another run, {said}; choose another run.dir, or its values"):
            find_resume(compose("+algo=grpo", f"run.dir={tmp_path}", key), tmp_path)


def test_a_run_of_an_earlier_release_did_what_a_new_key_says_by_default(tmp_path: Path) -> None:
    keys = ["+algo=grpo", f"run.dir={tmp_path}"]
    write_config(compose(*keys), tmp_path, None)
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del kept["learner"]["compile"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    assert find_resume(compose(*keys), tmp_path) is None
    with pytest.raises(RloptError, match=r"holds another run, learner.compile=True \(there: False\)"):
        find_resume(compose(*keys, "learner.compile=true"), tmp_path)


def test_another_run_is_named_before_anything_that_this_one_could_not_do_there(tmp_path: Path) -> None:
    write_config(compose("+algo=grpo", f"run.dir={tmp_path}"), tmp_path, None)
    checkpoint_of(tmp_path, 30, [])
    with pytest.raises(RloptError, match=r"holds another run, algo.name=red_weight \(there: grpo\)"):
        find_resume(compose("+algo=red_weight", f"run.dir={tmp_path}"), tmp_path)


def test_a_schedule_of_the_learning_rate_that_runs_to_the_last_step_fixes_that_step(tmp_path: Path) -> None:
    keys = ["+algo=grpo", f"run.dir={tmp_path}", "learner.lr_schedule=linear"]
    write_config(compose(*keys), tmp_path, None)
    with pytest.raises(RloptError, match=r"trainer.total_steps=500 \(there: 400\), on which learner.lr_schedule depends"):
        find_resume(compose(*keys, "trainer.total_steps=500"), tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "[]"])
def test_a_config_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RloptError, match=r"run.dir=.*: its config.yaml cannot be read as one; choose another run.dir"):
        find_resume(compose("+algo=grpo", f"run.dir={tmp_path}"), tmp_path)


def test_a_number_of_engines_in_the_command_counts_again_over_one_that_was_asked_for_before(tmp_path: Path) -> None:
    write_config(compose("+algo=grpo", f"run.dir={tmp_path}"), tmp_path, None)
    ask_for(tmp_path, 3)
    write_config(compose("+algo=grpo", f"run.dir={tmp_path}"), tmp_path, None)
    assert wanted_engines(tmp_path, 1) == 3
    write_config(compose("+algo=grpo", f"run.dir={tmp_path}", "rollout.engines=2"), tmp_path, None)
    assert wanted_engines(tmp_path, 2) == 2
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["rollout"]["engines"] == 2


def test_a_run_goes_on_from_its_newest_sound_checkpoint_and_says_which_was_damaged(tmp_path: Path) -> None:
    config = compose("+algo=grpo", f"run.dir={tmp_path}")
    older, newer = (checkpoint_of(tmp_path, step) for step in (3, 7))
    (newer / "manifest.json").write_text(json.dumps({"step": 7, "files": {"hf/model.safetensors": 8}}))
    assert find_resume(config, tmp_path) == older
    assert damaged_after(config, tmp_path, older) == {newer: "hf/model.safetensors is missing or has not its 8 bytes"}
    asked = compose("+algo=grpo", f"run.dir={tmp_path}", f"run.resume={newer}")
    with pytest.raises(RloptError, match="step_7: hf/model.safetensors is missing"):
        find_resume(asked, tmp_path)
    asked = compose("+algo=grpo", f"run.dir={tmp_path}", f"run.resume={older}")
    assert not damaged_after(asked, tmp_path, find_resume(asked, tmp_path))  # what comes after it is forgotten
