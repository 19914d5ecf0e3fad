"""Asynchronous against lockstep (1, 0) on the same work, in turn: `python examples/speed/regimes.py [FOLDER]`.

The learning rate is too small to change the policy, so both sample and learn from answers of the same length. The first 10
steps of a run, in which engines and learner warm up, are not counted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

ROUNDS, STEPS, WARM = 3, 60, 10
COMMON = ["+algo=grpo", "learner.lr=1e-9", f"trainer.total_steps={STEPS}", "trainer.save_every=0", "tracking.wandb=disabled"]
MODES = {
    "lockstep (1, 0)": ["sync.interval=1"],
    "async, max_lag 8": ["sync.mode=async", "sync.interval=1", "sync.max_lag=8"],
}


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Speeds and idle shares of one run."""
    line = [sys.executable, "-m", "rlopt.train", *COMMON, *overrides, f"run.dir={folder}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()][WARM:]
    wall = sum(row["timing_s/step"] for row in rows)
    return {
        "samples/s": (rows[-1]["samples_seen"] - rows[0]["samples_seen"]) / (wall - rows[0]["timing_s/step"]),
        "tokens/s": (rows[-1]["tokens_seen"] - rows[0]["tokens_seen"]) / (wall - rows[0]["timing_s/step"]),
        "learner idle": mean(row["idle/learner_frac"] for row in rows),
        "samplers idle": mean(row["idle/rollout_frac"] for row in rows if "idle/rollout_frac" in row),
        "mean lag": mean(row["offpolicy/lag_mean"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default="runs/speed", help="runs/speed without it")
    folder = parser.parse_args().folder
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for turn in range(ROUNDS):
        for mode, overrides in MODES.items():
            found[mode].append(measure(folder / f"{mode.split()[0].strip(',')}-{turn}", overrides))
    table = Table(
        title=f"{ROUNDS} runs each, in turn, {STEPS - WARM} steps counted; mean (least to most)", title_justify="left"
    )
    for column in ("mode", *found["lockstep (1, 0)"][0]):
        table.add_column(column, justify="right")
    for mode, runs in found.items():
        cells = [[run[name] for run in runs] for name in runs[0]]
        table.add_row(mode, *(f"{mean(c):.4g} ({min(c):.4g} to {max(c):.4g})" for c in cells))
    console = Console(width=140)
    console.print(table)
    first, second = (mean(run["samples/s"] for run in runs) for runs in found.values())
    console.print(f"async learns from {second / first:.2f} times as many samples a second as lockstep (1, 0)", highlight=False)


if __name__ == "__main__":
    main()
