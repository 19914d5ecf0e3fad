"""An update beside the time that its matrices need: `python examples/speed/update.py FOLDER`; models are made in FOLDER.

One learner rank in this process, as a run has it but without Ray: 16 prompts with 8 answers whose lengths vary as those of a
random model do, forward and backward pass, and AdamW; as it is, and with `learner.compile`, in turn. The floor is 6 operations
for each parameter and token, padding not counted, at the rate at which as many threads multiply matrices of 1024 rows.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import torch
from peer import model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from rlopt.cluster.actors import free_port
from rlopt.config.compose import default_section, read
from rlopt.config.learners import LearnerConfig
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.core.table import Update
from rlopt.data.collate import tabulate
from rlopt.data.microbatches import microbatches
from rlopt.learner.worker import LearnerSetup, LearnerWorker
from rlopt.objectives.core import no_loss_terms
from rlopt.objectives.credit import compute_advantages
from rlopt.objectives.grpo import GRPO

PROMPTS, GROUP, PROMPT, LONGEST, MEAN, WORDS = 16, 8, 9, 72, 36, 20
"""Prompts, answers to each; tokens of a prompt, of an answer at most, and of one on average if none were cut; token ids."""

OBJECTIVE = GRPO(clip_low=0.2, clip_high=0.2, std="population", average="token_mean")


@dataclass(frozen=True)
class Case:
    """A learner that updates with so many threads."""

    model: str
    parameters: int
    dtype: torch.dtype
    threads: int


def batch() -> Update:
    """What one step learns from."""
    chance = np.random.default_rng(0)

    def answer(place: int) -> Sample:
        length = int(min(chance.geometric(1 / MEAN), LONGEST))
        ids = chance.integers(2, WORDS, length, dtype=np.int32)
        logprobs, versions = np.full(length, -3.0, np.float32), np.zeros(length, np.int32)
        return Sample("p", ids, np.ones(length, np.bool_), logprobs, versions, "", "stop", float(place % 2), {})

    prompt = Prompt("p", tuple(range(2, 2 + PROMPT)), "", "", "")
    table = tabulate([Group(prompt, tuple(answer(place) for place in range(GROUP))) for _ in range(PROMPTS)], 1)
    (update,) = compute_advantages(table, None, None, OBJECTIVE, no_loss_terms(LONGEST))
    return update


def learner(folder: Path, dtype: torch.dtype, config: LearnerConfig) -> LearnerWorker:
    """A rank that has loaded its model; the ranks of this process meet at the first."""
    setup = LearnerSetup(
        folder=folder,
        dtype=dtype,
        device="cpu",
        threads=1,
        reference=False,
        temperature=1.0,
        total_steps=1000,
        objective=OBJECTIVE,
        terms=no_loss_terms(LONGEST),
        sync_backend="shm",
        bucket_bytes=2**28,
        verify=False,
        deadline_s=600.0,
        stall_s=600.0,
        seed=0,
    )
    rank = LearnerWorker(setup, config, 0, 1)
    if not torch.distributed.is_initialized():
        rank.join(("127.0.0.1", free_port()))
    rank.load_models()
    return rank


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rate(dtype: torch.dtype) -> float:
    """Operations a second, multiplying matrices with the threads that are set."""
    left, right = (torch.randn(1024, 1024, dtype=dtype) for _ in range(2))
    return 2 * 1024**3 / median(seconds(lambda: left @ right) for _ in range(60))


def measure(case: Case, ranks: list[LearnerWorker], share: list[Update], tokens: int, rounds: int) -> list[str]:
    """A row of the table; each rank updates once in each round, after two that are not counted."""
    torch.set_num_threads(case.threads)
    taken = [[seconds(partial(rank.update, share, step)) for rank in ranks] for step in range(1, rounds + 3)]
    floor = 6 * case.parameters * tokens / max(rate(case.dtype) for _ in range(3))
    found = [f"{median(t):.3f} ({min(t):.3f} to {max(t):.3f}): {median(t) / floor:.2f}" for t in zip(*taken[2:], strict=True)]
    return [case.model, str(case.dtype).removeprefix("torch."), str(case.threads), f"{floor:.3f}", *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["6.8M", "34M"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    update, config = batch(), read(LearnerConfig, {**default_section("learner"), "lr": 1e-9}, "learner.")
    (share,) = microbatches(update, "sequence", 1, config.token_budget)
    tokens, padded = int(update.lengths.sum()), sum(len(part) * int(part.lengths.max()) for part in share)
    table = Table("model", "dtype", "threads", "floor (s)", "update (s): times the floor", "with learner.compile")
    for name in given.models:
        folder = model(name, given.folder)
        parameters = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
        for dtype in (getattr(torch, word) for word in given.dtypes):
            ranks = [learner(folder, dtype, replace(config, compile=compiled)) for compiled in (False, True)]
            for threads in given.threads:
                table.add_row(*measure(Case(name, parameters, dtype, threads), ranks, share, tokens, given.rounds))
    console = Console(width=160)
    console.print(f"{len(update)} sequences of {tokens} tokens, {padded} with padding, in {len(share)} micro-batches")
    console.print(table)


if __name__ == "__main__":
    main()
