"""What one card makes of rlopt: `python prove.py FOLDER [ROW ...]`, or with `--rehearse`, on a CPU with a tiny model.

Each row is a run of a few steps, in a process of its own and with a deadline. No row begins after `--minutes`, ten without it:
an engine alone takes 35 to 70 seconds to start on an H200, so that all rows may take more. What they measured goes to
FOLDER/results.json after every row, rows that are there already are not run again, and FOLDER/table.md shows them with card,
date and command. A row that fails is a result: its last line stands in the table.
"""

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
"""Of Qwen2.5, as its configs have them."""

SHARED = "cluster.gpus_per_engine=0.4 cluster.gpus_per_learner=0.6 rollout.gpu_memory_share=0.35"
SIZE = "rollout.max_new_tokens=512 data.prompts_per_step=32 learner.token_budget=16384"
LARGE = f"{SHARED} rollout.sleep=true sync.interval=1 {SIZE}"
CHECKPOINTS = "learner.gradient_checkpointing=true"


@dataclass(frozen=True)
class Row:
    """A run: what it shows, its model, steps, keys, and seconds after which it is ended."""

    shows: str
    model: str
    algo: str
    steps: int
    keys: str
    deadline_s: float = 150.0


ROWS = {
    "0.5b": Row("memory of the plan against memory used", "0.5b", "grpo", 3, f"{LARGE} {CHECKPOINTS}"),
    "1.5b": Row("throughput with recomputation", "1.5b", "grpo", 3, f"{LARGE} {CHECKPOINTS}"),
    "1.5b, no recomputation": Row("throughput", "1.5b", "grpo", 3, LARGE),
    "1.5b, compiled": Row("the same, layers and logits compiled", "1.5b", "grpo", 4, f"{LARGE} learner.compile=true", 200.0),
    "1.5b, packed": Row("sequences without padding", "1.5b", "grpo", 3, f"{LARGE} {CHECKPOINTS} learner.packing=true"),
    "1.5b, ZeRO 3": Row("weights sharded as they are made", "1.5b", "grpo", 2, f"{LARGE} {CHECKPOINTS} learner.zero_stage=3"),
    "1.5b, parked": Row(
        "reference and optimizer in host memory",
        "1.5b",
        "grpo",
        2,
        f"{LARGE} {CHECKPOINTS} learner.offload=[optimizer,reference]",
    ),
    "32k tokens": Row(
        "long responses on one card",
        "1.5b",
        "grpo",
        1,
        f"{SHARED} rollout.sleep=true {CHECKPOINTS} rollout.max_new_tokens=32000 data.prompts_per_step=1 algo.group_size=4 "
        "learner.token_budget=32768 sync.interval=1",
        deadline_s=240.0,
    ),
    "async": Row(
        "samplers never stop", "tiny_s", "rec_oneside_nois", 20, f"{SHARED} sync.mode=async sync.interval=1 sync.max_lag=8"
    ),
    "sleep": Row(
        "the engine gives its memory back", "tiny_s", "rec_oneside_nois", 10, f"{SHARED} sync.interval=5 rollout.sleep=true"
    ),
    "lora": Row("adapters, by shared memory", "tiny_s", "grpo", 10, f"{SHARED} sync.interval=5 learner.lora.rank=16"),
    "ipc": Row("engine and learner on one card, weights by CUDA IPC", "tiny_s", "grpo", 20, f"{SHARED} sync.interval=5"),
    "1.5b, no reference": Row("what the reference costs", "1.5b", "grpo", 3, f"{LARGE} {CHECKPOINTS} algo.kl.every=0"),
    "1.5b, chunks of 4,096": Row("more memory", "1.5b", "grpo", 3, f"{LARGE} {CHECKPOINTS} learner.logit_chunk=4096"),
}
"""What is least known comes first."""

REHEARSED = (
    "cluster.gpus_per_engine=0 cluster.gpus_per_learner=0 model.path=tiny_s rollout.sleep=false rollout.max_new_tokens=32 "
    "data.prompts_per_step=2"
)
"""On a CPU these replace what a card is needed for."""

MEASURED = {
    "step, s": "timing_s/step",
    "update, s": "timing_s/update",
    "sync, s": "timing_s/sync",
    "canary, nats": "sync/canary_abs_diff",
    "tokens/s": "perf/tokens_per_s",
    "peak, GiB": "perf/learner_peak_gib",
    "learner idle": "idle/learner_frac",
    "engine idle": "idle/rollout_frac",
}
PLANNED = "planned, GiB"
COLUMNS = (*MEASURED, PLANNED)


def model(name: str, home: Path) -> str:
    """`tiny_s` as it is, or a folder with a model of a real size: random weights, and the tokenizer of `tiny_s`."""
    if name not in SIZES:
        return name
    folder = home / "models" / name
    if not (folder / "config.json").exists():
        import torch
        import transformers

        from rlopt.models.loading import find_model

        config = transformers.Qwen2Config(
            vocab_size=151_936, max_position_embeddings=32_768, tie_word_embeddings=True, **SIZES[name]
        )
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
        transformers.AutoTokenizer.from_pretrained(find_model("tiny_s", lambda *_: None)).save_pretrained(folder)
    return str(folder)


def command(name: str, row: Row, home: Path, rehearse: bool) -> list[str]:
    """The run of a row."""
    keys = [f"+algo={row.algo}", f"trainer.total_steps={row.steps}", "trainer.save_every=0", "tracking.wandb=disabled"]
    keys += [f"run.dir={home / 'runs' / name.replace(', ', '-').replace(' ', '_')}", *row.keys.split()]
    keys += REHEARSED.split() if rehearse else [f"model.path={model(row.model, home)}"]
    return [sys.executable, "-m", "rlopt.train", *{key.partition("=")[0]: key for key in keys}.values()]


def run(name: str, row: Row, home: Path, rehearse: bool) -> dict[str, Any]:
    """What a row measured: medians over all steps but the first, what the plan said, or how it failed."""
    line, began = command(name, row, home, rehearse), time.monotonic()
    planned = subprocess.run([*line, "trainer.dry_run=true"], capture_output=True, text=True, check=False)
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=row.deadline_s, check=False)
        failed = "" if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        failed = f"not done in {row.deadline_s:.0f} s"
    found: dict[str, Any] = {
        "shows": row.shows,
        "command": shlex.join(["python", *line[1:]]),
        "seconds": time.monotonic() - began,
    }
    found["plan"] = next((text for text in planned.stdout.splitlines() if text.startswith("learners")), "")
    said = re.search(r"([\d.]+) (GiB|MiB) each", found["plan"])
    found[PLANNED] = said and float(said[1]) / (1 if said[2] == "GiB" else 1024)
    found["date"], found["failed"] = datetime.date.today().isoformat(), failed
    file = next(Path(key.partition("=")[2]) for key in line if key.startswith("run.dir=")) / "metrics.jsonl"
    rows = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    for column, metric in MEASURED.items():
        values = [each[metric] for each in rows[1:] or rows if each.get(metric) is not None]
        found[column] = median(values) if values else None
    return found


def card() -> str:
    """The card that torch sees."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no card: a rehearsal on a CPU"


def table(results: dict[str, dict[str, Any]]) -> str:
    """All rows, as Markdown, with their commands below."""
    lines = [f"{card()}, {max(one['date'] for one in results.values())}.", ""]
    lines += [f"| row | shows | {' | '.join(COLUMNS)} | whole run, s | failed |", "|---" * (len(COLUMNS) + 4) + "|"]
    for name, one in results.items():
        cells = ["" if one[column] is None else f"{one[column]:.3g}" for column in COLUMNS]
        lines.append(f"| {name} | {one['shows']} | {' | '.join(cells)} | {one['seconds']:.0f} | {one['failed']} |")
    lines += ["", *(f"    {one['command']}\n    {one['plan']}\n" for one in results.values())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", nargs="*", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU with a tiny model")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no row begins; 10 without it")
    asked = parser.parse_args()
    began = time.monotonic()
    home, file = asked.folder.resolve(), asked.folder.resolve() / "results.json"
    home.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in asked.rows or ROWS:
        if name in results and not results[name]["failed"]:
            continue
        if time.monotonic() - began > 60 * asked.minutes:
            sys.exit(f"{name} and what follows it were left out; the same command goes on with them")
        results[name] = run(name, ROWS[name], home, asked.rehearse)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results[name]['failed'] or 'done'}, {results[name]['seconds']:.0f} s", flush=True)
        (home / "table.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
