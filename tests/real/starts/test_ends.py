"""How a run ends from outside: interrupted, told by a cluster, or killed. What it leaves, had learned, and goes on from."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Ended, alike, end, on_schedule, rows, sound, steps
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlopt.models.loading import find_model
from rlopt.run import checkpoint
from rlopt.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


def exact(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(("timing_s", "perf", "idle", "sync/seconds"))}


def test_an_interrupted_run_listened_on_loopback_alone_keeps_its_checkpoint_and_leaves_no_process(interrupted: Ended) -> None:
    assert interrupted.listening
    assert interrupted.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert interrupted.returncode == 130
    assert interrupted.errors.splitlines()[-1].startswith("interrupted: the last checkpoint is complete"), interrupted.errors
    assert "Traceback" not in interrupted.errors
    assert interrupted.seconds < 20
    assert not interrupted.left
    assert interrupted.kept == ["step_15"]


def test_the_same_command_continues_with_the_same_numbers_to_the_end(interrupted: Ended, gone_on: Path) -> None:
    metrics = rows(gone_on / "metrics.jsonl")
    assert len(interrupted.metrics) >= 21  # after a sync that is made again
    assert list(map(exact, metrics[: len(interrupted.metrics)])) == list(map(exact, interrupted.metrics))
    on_schedule(gone_on)
    syncs = [event["version"] for event in rows(gone_on / "events.jsonl") if event["event"] == "sync"]
    assert syncs == [0, 20, 15, 20, 40]
    sound(gone_on)


def test_a_run_leaves_its_config_samples_and_an_offline_wandb_run(gone_on: Path) -> None:
    config = yaml.safe_load((gone_on / "config.yaml").read_text())
    assert (config["algo"]["name"], config["sync"]["interval"]) == ("grpo", 20)
    samples = rows(gone_on / "samples.jsonl")
    assert {"step", "prompt", "completion", "answer", "reward", "version"} <= set(samples[0])
    assert list((gone_on / "wandb").glob("offline-run-*/run-*.wandb"))


def test_the_model_of_a_checkpoint_is_the_trained_one(gone_on: Path) -> None:
    hf = checkpoint.find_all(gone_on)[-1] / "hf"
    model = AutoModelForCausalLM.from_pretrained(hf)
    assert AutoTokenizer.from_pretrained(hf).encode("1+1=")
    base = load_file(find_model("tiny_s", lambda *_: None) / "model.safetensors")
    trained = dict(model.named_parameters())
    assert all(not torch.equal(trained[name], tensor) for name, tensor in base.items() if name.endswith("proj.weight"))


ADAPTED = ("learner.lora.rank=8", "learner.lora.targets=[q_proj,v_proj,down_proj]", "learner.lr=3e-3")
SENT = 2 * 8 * ((64 + 64) + (64 + 64) + (256 + 64)) * 4
"""Bytes of the adapters of two blocks of `tiny_s`, in float32."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Adapters learned on two ranks with ZeRO 3. The driver is killed after a checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    sharded = (
        "learner.workers=2",
        "learner.zero_stage=3",
        "sync.interval=2",
        "trainer.save_every=6",
        "tracking.wandb=disabled",
    )
    return end(folder, lambda: steps(folder) >= 7, lambda pid: os.kill(pid, signal.SIGKILL), *ADAPTED, *sharded)


def test_nothing_outlives_a_driver_that_was_killed_and_its_checkpoint_is_complete(killed: Ended) -> None:
    assert killed.returncode == -signal.SIGKILL
    assert not killed.left
    assert killed.kept[0] == "step_6"


def test_adapters_of_two_ranks_are_sent_alone_and_learn(killed: Ended) -> None:
    syncs = [event for event in rows(killed.folder / "events.jsonl") if event["event"] == "sync"]
    assert [(sync["version"], sync["sync/bytes"]) for sync in syncs][:4] == [(version, SENT) for version in (0, 2, 4, 6)]
    assert all(sync["sync/canary_abs_diff"] < 1e-4 for sync in syncs)
    assert killed.metrics[0]["actor/kl_k2"] < 1e-10  # they begin as nothing, and the reference is the model without them
    assert killed.metrics[5]["actor/kl_k2"] > 1e-5
    assert all(abs(killed.metrics[step]["offpolicy/ratio_max"] - 1) < 1e-4 for step in (0, 2, 4, 6))  # fresh from a sync


def test_adapters_stand_in_a_checkpoint_merged(killed: Ended, tmp_path: Path) -> None:
    initial = load_file(find_model("tiny_s", lambda *_: None) / "model.safetensors")
    kept = checkpoint.find_all(killed.folder)[-1]
    learned = load_file(kept / "hf" / "model.safetensors")
    changed = {name for name in initial if not torch.equal(initial[name], learned[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    assert len(load_file(kept / "adapter" / "adapter_model.safetensors")) == 2 * 3 * 2
    assert export(killed.folder, tmp_path / "out").difference < 1e-4


ODD = '{"do_sample": false, "temperature": 0.9, "eos_token_id": 1, "pad_token_id": 0}'
"""A generation config that transformers reads and would not write."""


@pytest.fixture(scope="module")
def told_to_end(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Two ranks with ZeRO 2, by a SIGTERM to all of the process group; the model has dropout and an odd generation config."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(find_model("tiny_s", lambda *_: None), folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    (folder / "model" / "generation_config.json").write_text(ODD)
    sharded = ("learner.workers=2", "learner.zero_stage=2", "learner.token_budget=300")
    keys = (f"model.path={folder / 'model'}", *sharded, "tracking.wandb=disabled")
    run = folder / "run"
    return end(run, lambda: steps(run) >= 3, lambda pid: os.killpg(pid, signal.SIGTERM), *keys)  # as `timeout` and clusters do


def test_a_run_whose_whole_process_group_is_asked_to_end_saves_what_it_made(told_to_end: Ended) -> None:
    assert told_to_end.returncode == 130
    assert told_to_end.errors.splitlines()[-1].startswith("interrupted: the last checkpoint is complete"), told_to_end.errors
    assert told_to_end.seconds < 25
    assert not told_to_end.left
    assert told_to_end.kept == [f"step_{len(told_to_end.metrics)}"]


def test_two_ranks_with_zero_2_and_a_model_with_dropout_learn_what_one_rank_does_without(
    told_to_end: Ended, gone_on: Path
) -> None:
    fresh = told_to_end.metrics[0]  # sampled by the weights that learn from it
    assert (fresh["offpolicy/lag_max"], fresh["offpolicy/ratio_mean"]) == (0, pytest.approx(1, abs=1e-4))
    sound(told_to_end.folder)
    alike(told_to_end.folder, gone_on, 3)  # whose micro-batches are larger, too


def test_a_model_that_transformers_would_not_write_is_saved_and_exported(told_to_end: Ended, tmp_path: Path) -> None:
    hf = checkpoint.find_all(told_to_end.folder)[-1] / "hf"
    assert (hf / "generation_config.json").read_text() == ODD
    assert json.loads((hf / "config.json").read_text())["attention_dropout"] == 0.3
    assert export(told_to_end.folder, tmp_path / "out").difference < 1e-3
    assert (tmp_path / "out" / "generation_config.json").read_text() == ODD
