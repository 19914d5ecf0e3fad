"""Adapters on the real stack: they alone are sent, engines act as the learner does, and a checkpoint goes on, sharded too."""

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
STEPS = ["+algo=grpo", *SMALL, "sync.interval=2", "tracking.wandb=disabled", *ADAPTED]
SHARDED = ["learner.workers=2", "learner.zero_stage=3"]
SENT = 2 * 8 * ((64 + 64) + (64 + 64) + (256 + 64)) * 4
"""Bytes of the adapters of two blocks of `tiny_s`, in float32."""


def test_adapters_alone_are_sent_and_learn_and_go_on_from_a_checkpoint_also_sharded(tmp_path: Path) -> None:
    train(tmp_path / "one", *STEPS, "trainer.total_steps=8")
    one = rows(tmp_path / "one" / "metrics.jsonl")
    syncs = [event for event in rows(tmp_path / "one" / "events.jsonl") if event["event"] == "sync"]
    assert [(sync["version"], sync["sync/bytes"]) for sync in syncs] == [(version, SENT) for version in (0, 2, 4, 6)]
    assert all(sync["sync/canary_abs_diff"] < 1e-4 for sync in syncs)
    assert one[0]["actor/kl_k2"] < 1e-10  # adapters begin as nothing, and the reference is the model without them
    assert one[-1]["actor/kl_k2"] > 1e-5
    assert all(abs(one[step]["offpolicy/ratio_max"] - 1) < 1e-4 for step in (0, 2, 4, 6))  # fresh from a sync

    initial = load_file(find_model("tiny_s", lambda *_: None) / "model.safetensors")
    kept = checkpoint.find_all(tmp_path / "one")[-1]
    learned = load_file(kept / "hf" / "model.safetensors")
    changed = {name for name in initial if not torch.equal(initial[name], learned[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    assert len(load_file(kept / "adapter" / "adapter_model.safetensors")) == 2 * 3 * 2
    assert export(tmp_path / "one", tmp_path / "out").difference < 1e-4

    train(tmp_path / "two", *STEPS, *SHARDED, "trainer.total_steps=4")
    train(tmp_path / "two", *STEPS, *SHARDED, "trainer.total_steps=8")
    assert [row["step"] for row in rows(tmp_path / "two" / "events.jsonl") if row["event"] == "start"] == [0, 4]
    for a, b in zip(one, rows(tmp_path / "two" / "metrics.jsonl"), strict=True):
        assert b["reward/mean"] == a["reward/mean"]
        for key in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "actor/kl_k2", "offpolicy/ratio_mean"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6), key
