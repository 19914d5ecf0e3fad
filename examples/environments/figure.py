"""The figure and table of all runs: `python figure.py RUNS FOLDER` writes curves.csv, table.md and figure.{png,svg}.

A point of `curves.csv` is the mean of 10 steps of a run. Bands are the smallest and the largest of the seeds.
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

from rlopt.tracking.run_folder import read_column

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SPAN, STEPS = 10, 160
ENVIRONMENTS = {"calculator": "Calculator", "guessing": "Guessing game"}
KINDS = {
    "grpo": ("GRPO, interval 20", "#4C72B0"),
    "rec_oneside_nois": ("REC-OneSide-NoIS, interval 20", "#DD8452"),
    "async": ("GRPO, asynchronous", "#55A868"),
}
COLUMNS = {
    "reward/mean": "Training reward",
    "env/turns": "Turns of an episode",
    "response_length/mean": "Sampled tokens",
    "offpolicy/lag_mean": "Lag (learner steps)",
}


def blocks(run: Path, name: str) -> np.ndarray:
    """`[STEPS / SPAN]`: means of 10 steps."""
    return np.nanmean(np.array(read_column(run, name)[:STEPS]).reshape(-1, SPAN), 1)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("runs", type=Path, help="the folder of the runs")
parser.add_argument("out", type=Path, help="where figure and numbers go")
runs, out = vars(parser.parse_args()).values()
curves: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
with (out / "curves.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["environment", "kind", "seed", "step", *COLUMNS])
    for path in sorted(runs.glob("*.*/metrics.jsonl")):
        run = path.parent
        if len(read_column(run, "step")) < STEPS:
            continue
        name, _, seed = run.name.rpartition("-")
        environment, _, kind = name.partition(".")
        values = {column: blocks(run, column) for column in COLUMNS}
        for column, curve in values.items():
            curves.setdefault((environment, kind), {}).setdefault(column, []).append(curve)
        for block in range(STEPS // SPAN):
            cells = [f"{values[column][block]:.5g}" for column in COLUMNS]
            writer.writerow([environment, kind, seed, f"{block * SPAN + 1}-{(block + 1) * SPAN}", *cells])

lines = [
    "| environment | | reward, first 10 | last 10 | turns, first 10 | last 10 | lag, mean | seeds |",
    "|---|---|---|---|---|---|---|---|",
]
for environment, title in ENVIRONMENTS.items():
    for kind, (label, _) in KINDS.items():
        if (environment, kind) in curves:
            found = curves[environment, kind]
            reward, turns, lag = (found[name] for name in ("reward/mean", "env/turns", "offpolicy/lag_mean"))
            first_last = [spread([curve[place] for curve in part]) for part in (reward, turns) for place in (0, -1)]
            lines.append(f"| {title} | {label} | {' | '.join(first_last)} | {np.mean(lag):.1f} | {len(reward)} |")
(out / "table.md").write_text("\n".join(lines) + "\n")

figure, panels = plt.subplots(len(ENVIRONMENTS), len(COLUMNS), figsize=(15, 6.5), constrained_layout=True)
steps = np.arange(STEPS // SPAN) * SPAN + (SPAN + 1) / 2
for row, (environment, title) in zip(panels, ENVIRONMENTS.items(), strict=True):
    for axis, (column, label) in zip(row, COLUMNS.items(), strict=True):
        for kind, (name, color) in KINDS.items():
            if (environment, kind) in curves:
                seeds = np.array(curves[environment, kind][column])
                axis.plot(steps, seeds.mean(0), color=color, label=name)
                axis.fill_between(steps, seeds.min(0), seeds.max(0), color=color, alpha=0.2, linewidth=0)
        axis.set(title=f"{title}: {label.lower()}", xlabel="learner step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
panels[0][0].legend(fontsize=9)
for suffix in ("png", "svg"):
    figure.savefig(out / f"figure.{suffix}", dpi=110)
