"""rlopt beside TRL, on the same work, in turn: `python examples/speed/peer.py [FOLDER] [SIZE ...]`.

The same model, task, samples a step (16 prompts, 8 answers each), precision and cores; with a reference in both, then without
one in both. The learning rate is too small to change the policy, so answers keep their lengths. rlopt's weights go to its
engines after each window; whole windows are counted, after a first one. TRL 1.16 must be importable; it needs no other package
than `accelerate`:

    pip install --no-deps trl==1.16.0 accelerate

The limit is what the cores could do if they only multiplied matrices: 6 operations for each parameter and token to learn, 2
to sample it, 2 for the reference; their rate is measured before.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from rich.console import Console
from rich.table import Table

from rlopt.data.arithmetic import problems
from rlopt.models.loading import find_model
from rlopt.models.tiny import tokenizer
from rlopt.run.peer import MOST, row, train_apart

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SAMPLES = 128
WAYS = {
    "rlopt": ("rlopt", True),
    "TRL": ("TRL", True),
    "rlopt, no reference": ("rlopt", False),
    "TRL, no reference": ("TRL", False),
}
"""Who learns, and whether there is a reference."""


@dataclass(frozen=True)
class Size:
    """A model, and how many steps make a window of rlopt's: some are counted after some that warm up."""

    window: int
    warm: int
    counted: int
    hidden: int = 0
    intermediate: int = 0
    layers: int = 0
    heads: int = 0


SIZES = {
    "tiny_s": Size(20, 20, 40),
    "6.8M": Size(8, 8, 8, hidden=256, intermediate=1152, layers=6, heads=4),
    "34M": Size(4, 4, 4, hidden=512, intermediate=2048, layers=8, heads=8),
}


def model(name: str, folder: Path) -> Path:
    """`tiny_s` is trained; the larger ones are random, so that their answers end by chance."""
    size = SIZES[name]
    if not size.hidden:
        return find_model(name, lambda *_: None)
    place = folder / f"model-{name}"
    if not place.is_dir():
        torch.manual_seed(0)
        text = tokenizer()
        config = transformers.Qwen2Config(
            vocab_size=len(text),
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=0,
        )
        transformers.Qwen2ForCausalLM(config).save_pretrained(place)
        text.save_pretrained(place)
    return place


def rlopt(path: Path, size: Size, dtype: str, reference: bool, run: Path) -> dict[str, float]:
    line = [sys.executable, "-m", "rlopt.train", "+algo=grpo", f"model.path={path}", f"model.dtype={dtype}", "learner.lr=1e-9"]
    line += [f"trainer.total_steps={size.warm + size.counted}", f"sync.interval={size.window}", "trainer.save_every=0"]
    line += ["tracking.wandb=disabled", f"run.dir={run}", f"algo.kl.every={int(reference)}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()][-size.counted :]
    seconds, samples = sum(row["timing_s/step"] for row in rows), size.counted * SAMPLES
    tokens = sum(row["response_length/mean"] for row in rows) * SAMPLES
    return {"samples/s": samples / seconds, "tokens/s": tokens / seconds, "tokens a sample": tokens / samples}


def trl(path: Path, dtype: str, reference: bool) -> dict[str, float]:
    speed = train_apart(
        {
            "folder": str(path),
            "dtype": dtype,
            "rows": [row(problem.text, problem.text, str(problem.answer), {}) for problem in problems(0, MOST * 16)],
            "reward": ["rlopt.data.arithmetic:reward", None],
            "samples": SAMPLES,
            "group": 8,
            "together": SAMPLES,
            "tokens": 72,
            "temperature": 1.0,
            "top_p": 1.0,
            "reference": reference,
        }
    )
    rates = {"samples/s": speed.samples / speed.seconds, "tokens/s": speed.tokens / speed.seconds}
    return rates | {"tokens a sample": speed.tokens / speed.samples}


def rate(dtype: torch.dtype) -> float:
    """Operations a second of all cores, multiplying matrices."""
    side = 1024
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    left, right = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    left @ right
    began = time.perf_counter()
    for _ in range(20):
        left @ right
    return 20 * 2 * side**3 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default="runs/peer", help="runs/peer without it")
    parser.add_argument("sizes", nargs="*", help=f"some of: {', '.join(SIZES)}")
    asked = parser.parse_args()
    folder, names = asked.folder.resolve(), asked.sizes or list(SIZES)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = os.environ.get("DTYPE", "float32")
    table = Table(title=f"{dtype}, {ROUNDS} rounds in turn; median (least to most)", title_justify="left")
    for column in ("model", "", "samples/s", "tokens/s", "tokens a sample", "tokens/s of TRL's", "of the limit"):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    numbers: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in names:
        size, path = SIZES[name], model(name, folder)
        parameters = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(path).parameters())
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        rates: list[float] = []
        for turn in range(ROUNDS):
            rates.append(rate(getattr(torch, dtype)))
            for way, (who, reference) in WAYS.items():
                run = folder / f"{name}-{dtype}-{turn}-{int(reference)}-{os.getpid()}"
                speed = rlopt(path, size, dtype, reference, run) if who == "rlopt" else trl(path, dtype, reference)
                found[way].append(speed)
        numbers[name] = found
        for way, runs in found.items():
            who, reference = WAYS[way]
            beside = median(run["tokens/s"] for run in found[way.replace(who, "TRL")])
            cells = [[run[key] for run in runs] for key in ("samples/s", "tokens/s", "tokens a sample")]
            shown = [
                f"{median(c):,.3g} ({min(c):,.3g} to {max(c):,.3g})" if c[0] < 1000 else f"{median(c):,.0f}" for c in cells
            ]
            mid = median(run["tokens/s"] for run in runs)
            limit = median(rates) / ((10 if reference else 8) * parameters)
            table.add_row(name, way, *shown, f"{mid / beside:.2f}", f"{mid / limit:.0%}")
            name = ""
    (folder / f"peer-{dtype}.json").write_text(json.dumps(numbers, indent=1))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
