"""The figure and table of all runs: `python figure.py RUNS FOLDER` writes curves.csv, table.md and figure.{png,svg}.

A point of `curves.csv` is the mean of 20 steps of a run. Bands are the smallest and the largest of the seeds.
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib
import numpy as np

from rlopt.tracking.run_folder import read_column

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SPAN, STEPS = 20, 400
REGIMES = {
    "on_policy": "on-policy (1, 0)",
    "frozen_20": "frozen for 20 steps (20, 0)",
    "pipeline_10": "pipeline (1, 10)",
    "async_8": "async, max_lag 8",
    "offline": "offline",
}
COLUMNS = {
    "reward/mean": "Training Reward",
    "actor/kl_k2": "KL Divergence (k2, nats/token)",
    "offpolicy/lag_mean": "Lag (learner steps)",
}
ALGORITHMS = {
    "reinforce": ("REINFORCE", "#8C8C8C"),
    "grpo": ("GRPO", "#4C72B0"),
    "rec_oneside_nois": ("REC-OneSide-NoIS (0.2, 0.2)", "#DD8452"),
    "rec_oneside_is": ("REC-OneSide-IS (0.2, 0.2)", "#C44E52"),
    "rec_oneside_wide": ("REC-OneSide-NoIS (0.6, 2.0)", "#8172B3"),
    "red_weight": ("RED-Weight", "#55A868"),
}
"""Names, with clips, and colors."""


def held_out(run: Path) -> float:
    """avg@8 of the policy at the end on held-out prompts; NaN where it could not be asked."""
    file = run / "held_out.json"
    rows = json.loads(file.read_text())["metrics"] if file.exists() else []
    return next((row["value"] for row in rows if row["metric"] == "avg@8"), float("nan"))


def blocks(run: Path, name: str) -> np.ndarray:
    """`[STEPS / SPAN]`: means of 20 steps."""
    return np.nanmean(np.array(read_column(run, name)[:STEPS]).reshape(-1, SPAN), 1)


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    return f"{values.mean():.3f} ± {values.std():.3f}"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("runs", type=Path, help="the folder of the runs")
parser.add_argument("out", type=Path, help="where figure and numbers go")
runs, out = vars(parser.parse_args()).values()
curves: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
ends: dict[tuple[str, str], list[float]] = {}
with (out / "curves.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["algorithm", "regime", "seed", "step", *COLUMNS])
    for path in sorted(runs.glob("*.*/metrics.jsonl")):
        run = path.parent
        if len(read_column(run, "step")) < STEPS:
            continue
        name, _, seed = run.name.rpartition("-")
        algorithm, _, regime = name.partition(".")
        ends.setdefault((algorithm, regime), []).append(held_out(run))
        values = {column: blocks(run, column) for column in COLUMNS}
        for column, curve in values.items():
            curves.setdefault((algorithm, regime), {}).setdefault(column, []).append(curve)
        for block in range(STEPS // SPAN):
            cells = [f"{values[column][block]:.5g}" for column in COLUMNS]
            writer.writerow([algorithm, regime, seed, f"{block * SPAN + 1}-{(block + 1) * SPAN}", *cells])

initial = np.nanmean([held_out(run) for run in runs.glob("record-*")])
lines = [
    f"Held out: avg@8 on 500 held-out prompts at step {STEPS}; {initial:.3f} before. Offline, reward is that of the record.",
    "",
    "| algorithm | regime | reward, first 20 | first 100 | last 20 | best 20 | held out | seeds | KL (k2) at last | mean lag |",
    "|---|---|---|---|---|---|---|---|---|---|",
]
for regime in REGIMES:
    for algorithm, (title, _) in ALGORITHMS.items():
        if (algorithm, regime) not in curves:
            continue
        reward, kl, lag = (np.array(curves[algorithm, regime][column]) for column in COLUMNS)
        cells = [title, REGIMES[regime], f"{reward[:, 0].mean():.3f}", spread(reward[:, :5].mean(1)), spread(reward[:, -1])]
        answers = spread(np.array(ends[algorithm, regime])) if regime == "offline" else ""
        cells += [f"{reward.max(1).mean():.3f}", answers, str(len(reward))]
        lines.append("| " + " | ".join([*cells, f"{kl[:, -1].mean():.3g}", f"{lag.mean():.1f}"]) + " |")
(out / "table.md").write_text("\n".join(lines) + "\n")

figure, axes = plt.subplots(len(COLUMNS), len(REGIMES), figsize=(16, 8), sharex=True, sharey="row", constrained_layout=True)
steps = np.arange(SPAN, STEPS + 1, SPAN) - SPAN / 2
for row, (column, title) in zip(axes, COLUMNS.items(), strict=True):
    for axis, (regime, heading) in zip(row, REGIMES.items(), strict=True):
        for algorithm, (name, color) in ALGORITHMS.items():
            if (algorithm, regime) in curves:
                seeds = np.array(curves[algorithm, regime][column])
                axis.plot(steps, seeds.mean(0), color=color, label=name)
                axis.fill_between(steps, seeds.min(0), seeds.max(0), color=color, alpha=0.15, linewidth=0)
        axis.grid(alpha=0.3)
        if column == "reward/mean":
            axis.set_title(heading)
        if column == "actor/kl_k2":
            axis.set_yscale("log")
        if column == "offpolicy/lag_mean":
            axis.set_yscale("symlog")  # 0 to 10 live, to 399 offline
    row[0].set_ylabel(title)
for axis in axes[-1]:
    axis.set_xlabel("training step")
handles, labels = axes[0][1].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
for suffix in ("png", "svg"):
    figure.savefig(out / f"figure.{suffix}", dpi=110, metadata={"Date": None} if suffix == "svg" else None)
print("\n".join(lines))
