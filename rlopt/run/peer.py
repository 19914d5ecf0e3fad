"""The same work by TRL, for `rlopt.bench --peer trl`: `GRPOTrainer`, in a process of its own, with transformers' generation.

The same model, prompts, samples a step, lengths, sampling, rewards, precision and cores. TRL's learning rate is too small to
change the policy, so that answers keep their lengths; it learns once from each batch, as rlopt does. It holds a reference where
rlopt measures KL.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlopt.cluster.threads import cores
from rlopt.core.errors import RloptError, last_line, need
from rlopt.core.samples import Reference
from rlopt.models.loading import load_tokenizer
from rlopt.rewards.pool import load
from rlopt.run.validate import Prepared

WARM, COUNTED, SECONDS, MOST = 2, 3, 20.0, 60
"""Steps that warm up; then at least so many are counted, and as many as take so many seconds; and at most so many in all."""


@dataclass(frozen=True)
class PeerSpeed:
    """Samples, and response tokens, that were learned from in `seconds`."""

    samples: int
    tokens: int
    seconds: float


def check_peer(gpus: float) -> None:
    """Refuse what TRL cannot be measured with.

    Raises:
        RloptError: there are GPUs, or TRL is not installed.
    """
    need(not gpus, "--peer", "trl", "is measured on CPUs alone so far; leave it out with GPUs")
    lacking = [name for name in ("trl", "accelerate") if find_spec(name) is None]
    need(not lacking, "--peer", "trl", f"{', '.join(lacking)} is not installed; pip install --no-deps trl==1.16.0 accelerate")


def measure_trl(prepared: Prepared) -> PeerSpeed:
    """Do a config's work with TRL for half a minute.

    Raises:
        RloptError: TRL failed.
    """
    config = prepared.config
    wanted = MOST * config.data.prompts_per_step
    prompts = (prepared.data.prompts * (wanted // len(prepared.data.prompts) + 1))[:wanted]
    job: dict[str, Any] = {
        "folder": str(prepared.model.folder),
        "dtype": prepared.model.precision.name,
        "rows": [
            row(prepared.model.tokenizer.decode(prompt.token_ids), prompt.text, prompt.answer, prompt.columns)
            for prompt in prompts
        ],
        "reward": [config.reward.fn, config.reward.weights],
        "samples": config.samples_per_step,
        "group": config.group_size,
        "together": at_once(config.samples_per_step, config.learner.tokens_at_once // prepared.data.longest),
        "tokens": config.rollout.max_new_tokens,
        "temperature": config.rollout.temperature,
        "top_p": config.rollout.top_p,
        "reference": prepared.reference_every > 0,
    }
    return train_apart(job)


def row(given: str, prompt: str, answer: Reference, columns: Mapping[str, Any]) -> dict[str, str]:
    """What the model is given, and what the reward is asked with."""
    return {"prompt": given, "asked": json.dumps({"prompt": prompt, "answer": answer, "columns": dict(columns)})}


def train_apart(job: dict[str, Any]) -> PeerSpeed:
    """Train with TRL in a process of its own, on the rows, sizes and rewards of a job as `measure_trl` makes it.

    Raises:
        RloptError: TRL failed; with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "rlopt.run.peer"]
        done = subprocess.run(line, input=json.dumps(job), capture_output=True, text=True, cwd=folder, env=_environment())
    if done.returncode:
        raise RloptError(f"--peer=trl: TRL failed ({last_line(RuntimeError(done.stderr))}); leave it out")
    return PeerSpeed(**json.loads(done.stdout.splitlines()[-1]))


def at_once(samples: int, most: int) -> int:
    """The largest divisor of `samples` up to `most`: sequences of a micro-batch, all of one size as TRL has them."""
    return max(size for size in range(1, max(1, min(samples, most)) + 1) if samples % size == 0)


def _environment() -> dict[str, str]:
    """Of the process: it can import what a user's own reward needs, and sends no telemetry."""
    path = os.pathsep.join([os.getcwd(), *sys.path])
    return os.environ | {"PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _rewards(job: dict[str, Any]) -> Callable[..., list[float | None]]:
    function = load(*job["reward"])

    def rewards(completions: list[str], asked: list[str], **_: object) -> list[float | None]:
        values: list[Any] = [function(completion=text, **json.loads(one)) for text, one in zip(completions, asked, strict=True)]
        return [value["score"] if isinstance(value, dict) else value for value in values]

    return rewards


def _train(job: dict[str, Any]) -> PeerSpeed:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            ends.append(time.perf_counter())
            counted = len(ends) - WARM
            control.should_training_stop = counted >= COUNTED and ends[-1] - ends[WARM - 1] > SECONDS

    torch.set_num_threads(cores())
    model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"]))
    tokenizer = load_tokenizer(Path(job["folder"]))
    tokenizer.padding_side = "left"
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=_rewards(job),
        args=GRPOConfig(
            output_dir="trl",
            use_cpu=True,
            bf16=False,  # the model is bfloat16 itself where asked; autocast on top would only add conversions
            per_device_train_batch_size=job["together"],
            gradient_accumulation_steps=job["samples"] // job["together"],
            num_generations=job["group"],
            max_completion_length=job["tokens"],
            temperature=job["temperature"],
            top_p=job["top_p"],
            max_steps=MOST,
            learning_rate=1e-9,
            beta=0.01 if job["reference"] else 0.0,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry]
    counted = len(ends) - WARM
    tokens = round(sum(lengths[WARM:][:counted]) * job["samples"])
    return PeerSpeed(counted * job["samples"], tokens, ends[-1] - ends[WARM - 1])


if __name__ == "__main__":
    print(json.dumps(asdict(_train(json.load(sys.stdin)))))
