"""Losses of every shape on the real stack: one vLLM engine and one DeepSpeed learner, taken over by one after another.

In the first step nothing has moved, so a loss has a value that can be worked out from what was sampled alone. What the
objectives do beyond it the conformance kit tries, without engines.
"""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import rows
from crews import SMALL, prepared_for, train

from rlopt.data.prompt_sampler import PromptSampler
from rlopt.models.loading import find_model, load_tokenizer
from rlopt.models.policy import own_logprobs
from rlopt.run import workers

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

Groups = list[list[dict[str, Any]]]


def first_groups(run: Path) -> Groups:
    """The samples of the first step, group by group, as the run recorded them."""
    with gzip.open(run / "experience.jsonl.gz", "rt") as file:
        read = [json.loads(line) for line in file]
    return [row["samples"] for row in read if row.get("step") == 1]


def token_mean(groups: Groups, std: str, log_probabilities: bool) -> float:
    """`-A` of every token, times its log-probability if that is asked for, averaged over all tokens."""
    total, count = 0.0, 0
    for group in groups:
        rewards = np.array([sample["reward"] for sample in group])
        scale = {"none": 1.0, "population": rewards.std() + 1e-6, "sample": rewards.std(ddof=1) + 1e-6}[std]
        for sample, advantage in zip(group, (rewards - rewards.mean()) / scale, strict=True):
            each = np.array(sample["logprobs"]) if log_probabilities else np.ones(len(sample["token_ids"]))
            total -= advantage * each.sum()
            count += len(each)
    return total / count


SAMPLED = {
    "grpo": lambda groups: token_mean(groups, "population", False),
    "dapo": lambda groups: token_mean(groups, "sample", False),
    "rec_oneside_nois": lambda groups: token_mean(groups, "none", True),
    "sppo": lambda groups: 0.0,  # log r = 0
    "gspo": lambda groups: 0.0,  # a sequence counts once, and advantages of siblings add up to 0
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_first_loss_of_sampled_groups_is_what_their_rewards_make_it(
    name: str, crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    overrides = [*SMALL, "sync.interval=1", "trainer.total_steps=2", "run.record=true"]
    overrides += ["algo.overlong.buffer=0.0"] if name == "dapo" else []
    train(crew, prepared_for(tmp_path / "run", f"+algo={name}", *overrides), home / "fresh")
    first, second = rows(tmp_path / "run" / "metrics.jsonl")
    groups = first_groups(tmp_path / "run")
    assert [len(group) for group in groups] == [4] * 4
    assert first["actor/pg_loss"] == pytest.approx(SAMPLED[name](groups), abs=2e-4)
    assert first["reward/mean"] == pytest.approx(np.mean([sample["reward"] for group in groups for sample in group]))
    assert first["offpolicy/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert first["actor/kl_k2"] < 1e-8 < second["actor/kl_k2"]  # the policy was the reference, and is no more
    assert first["sync/verified"] == 1
    assert first["offpolicy/lag_max"] == second["offpolicy/lag_max"] == 0
    if name == "dapo":  # a group without signal was replaced
        assert first["reward/zero_std_frac"] == second["reward/zero_std_frac"] == 0


def test_several_updates_of_a_step_move_the_policy_away_from_the_old_one(
    crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    overrides = ["+algo=decoupled_ppo", *SMALL, "sync.interval=1", "trainer.total_steps=1"]
    train(crew, prepared_for(tmp_path / "run", *overrides), home / "fresh")
    (step,) = rows(tmp_path / "run" / "metrics.jsonl")
    assert step["actor/updates"] == 4
    assert step["offpolicy/ratio_max"] > 1 + 1e-3  # of the later three


@pytest.mark.parametrize("name", ["dpo", "step_dpo", "sft"])
def test_the_first_loss_of_recorded_rows_is_ln_2_or_that_of_the_models_own_forward_pass(
    name: str, crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"data.train={file}", f"data.eval={file}", "trainer.eval_every=2", SMALL[0], "trainer.total_steps=2"]
    prepared = prepared_for(tmp_path / "run", f"+algo={name}", *keys)
    train(crew, prepared, home / "fresh")
    first, second = rows(tmp_path / "run" / "metrics.jsonl")
    expected = math.log(2)  # -log sigmoid(0): the policy is the reference
    if name == "sft":
        folder = find_model("tiny_s", lambda *_: None)
        tokenizer, lm, said = load_tokenizer(folder), transformers.AutoModelForCausalLM.from_pretrained(folder), []
        for row, _ in PromptSampler(len(ROWS), 4, prepared.config.run.seed).rows(1):
            prompt = tokenizer.encode(ROWS[row]["prompt"])
            answer = [*tokenizer.encode(ROWS[row]["answer"], add_special_tokens=False), tokenizer.eos_token_id]
            with torch.no_grad():
                said += own_logprobs(lm, torch.tensor([prompt + answer]))[0, -len(answer) :].tolist()
        expected = -float(np.mean(said))
    assert first["actor/pg_loss"] == pytest.approx(expected, abs=1e-4)
    if name != "sft":  # which is near its floor
        assert second["actor/pg_loss"] < first["actor/pg_loss"]
    assert "eval/actor/pg_loss" in second
    assert ("eval/preference/margin" in second) == (name != "sft")
