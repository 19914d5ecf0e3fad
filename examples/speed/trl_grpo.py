"""GRPO by TRL on the arithmetic task, for `peer.py`: `python trl_grpo.py MODEL_FOLDER STEPS WARM DTYPE BETA` prints JSON.

Generation is transformers', which is TRL's way on CPUs; its log-probabilities of the sampled tokens and, with `BETA` above 0,
those of the reference are computed as in rlopt. Each step learns once from 16 prompts with 8 answers each.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlopt.data.arithmetic import problems, reward

PROMPTS, ANSWERS, TOKENS = 16, 8, 72


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *told: object, **more: object) -> None:
        self.ends.append(time.perf_counter())


def rewards(prompts: list[str], completions: list[str], answer: list[str], **more: object) -> list[float]:
    return [reward(prompt, text, right) for prompt, text, right in zip(prompts, completions, answer, strict=True)]


def main() -> None:
    folder, steps, warm, dtype, beta = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = GRPOConfig(
        output_dir=os.environ.get("TMPDIR", "/tmp") + "/trl",
        use_cpu=True,
        bf16=False,  # the model is bfloat16 itself where asked; autocast on top would only add conversions
        per_device_train_batch_size=PROMPTS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=TOKENS,
        max_steps=steps,
        learning_rate=1e-9,
        beta=beta,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"prompt": problem.text, "answer": str(problem.answer)} for problem in problems(0, steps * PROMPTS)]
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        callbacks=[clock],
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry]
    seconds = clock.ends[-1] - clock.ends[warm - 1]
    samples, tokens = (steps - warm) * PROMPTS * ANSWERS, sum(lengths[warm:]) * PROMPTS * ANSWERS
    print(json.dumps({"samples/s": samples / seconds, "tokens/s": tokens / seconds, "tokens a sample": tokens / samples}))


if __name__ == "__main__":
    main()
