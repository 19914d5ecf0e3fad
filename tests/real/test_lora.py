"""Adapters on the real stack, sharded: they alone are sent, and engines act as the learner does."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL, rows, train
from safetensors.torch import load_file

from rlopt import checkpoint
from rlopt.export import export
from rlopt.model import find_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

ADAPTED = ["learner.lora.rank=8", "learner.lora.targets=[q_proj,v_proj,down_proj]", "learner.lr=3e-3"]
SENT = 2 * 8 * ((64 + 64) + (64 + 64) + (256 + 64)) * 4
"""Bytes of the adapters of two blocks of `tiny_s`, in float32."""


def test_adapters_of_two_ranks_are_sent_alone_and_learn_and_stand_in_a_checkpoint_merged(tmp_path: Path) -> None:
    run, sharded = tmp_path / "run", ["learner.workers=2", "learner.zero_stage=3"]
    train(run, "+algo=grpo", *SMALL, *ADAPTED, *sharded, "sync.interval=2", "trainer.total_steps=6", "tracking.wandb=disabled")
    metrics = rows(run / "metrics.jsonl")
    syncs = [event for event in rows(run / "events.jsonl") if event["event"] == "sync"]
    assert [(sync["version"], sync["sync/bytes"]) for sync in syncs] == [(version, SENT) for version in (0, 2, 4)]
    assert all(sync["sync/canary_abs_diff"] < 1e-4 for sync in syncs)
    assert metrics[0]["actor/kl_k2"] < 1e-10  # adapters begin as nothing, and the reference is the model without them
    assert metrics[-1]["actor/kl_k2"] > 1e-5
    assert all(abs(metrics[step]["offpolicy/ratio_max"] - 1) < 1e-4 for step in (0, 2, 4))  # fresh from a sync

    initial = load_file(find_model("tiny_s", lambda *_: None) / "model.safetensors")
    kept = checkpoint.find_all(run)[-1]
    learned = load_file(kept / "hf" / "model.safetensors")
    changed = {name for name in initial if not torch.equal(initial[name], learned[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    assert len(load_file(kept / "adapter" / "adapter_model.safetensors")) == 2 * 3 * 2
    assert export(run, tmp_path / "out").difference < 1e-4
