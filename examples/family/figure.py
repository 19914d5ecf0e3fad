"""One table and one figure of all runs: `python figure.py RUNS FOLDER` writes curves.csv, table.md and figure.{png,svg}.

A point of `curves.csv` is the mean of 20 steps, that is of one sampler version. The table and the figure show the last 20
steps: mean over seeds, and in the figure the smallest and the largest. A run has collapsed when its last 20 steps earn less
than three quarters of its best 20.
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

from rlopt.tracking.run_folder import read_column

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SPAN = 20
STEPS = 120
COLUMNS = {
    "reward/mean": "Training Reward",
    "actor/kl_k2": "KL Divergence (k2, nats/token)",
    "actor/entropy": "Entropy (nats/token)",
    "response_length/mean": "Response Length (tokens)",
}


def blocks(run: Path, name: str) -> np.ndarray:
    """`[STEPS / SPAN]`: means of 20 steps."""
    return np.array(read_column(run, name)[:STEPS]).reshape(-1, SPAN).mean(1)


def collapsed(reward: np.ndarray) -> bool:
    return bool(reward[-1] < 0.75 * reward.max())


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("runs", type=Path, help="the folder of the runs")
parser.add_argument("out", type=Path, help="where figure and numbers go")
runs, out = vars(parser.parse_args()).values()
finished = [path.parent for path in sorted(runs.glob("*/metrics.jsonl")) if len(read_column(path.parent, "step")) >= STEPS]
curves: dict[str, dict[str, list[np.ndarray]]] = {}
with (out / "curves.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["algorithm", "seed", "step", *COLUMNS])
    for run in finished:
        algorithm, _, seed = run.name.rpartition("-")
        values = {name: blocks(run, name) for name in COLUMNS}
        for name, curve in values.items():
            curves.setdefault(algorithm, {}).setdefault(name, []).append(curve)
        for block in range(STEPS // SPAN):
            cells = [f"{values[name][block]:.5g}" for name in COLUMNS]
            writer.writerow([algorithm, seed, f"{block * SPAN + 1}-{(block + 1) * SPAN}", *cells])

order = sorted(curves, key=lambda a: np.mean([c[-1] for c in curves[a]["reward/mean"]]), reverse=True)
lines = [
    "| algorithm | reward, first 20 steps | last 20 | best 20 | KL (k2) | entropy | length | collapsed |",
    "|---|---|---|---|---|---|---|---|",
]
for algorithm in order:
    reward, kl, entropy, length = (np.array(curves[algorithm][name]) for name in COLUMNS)
    gone = sum(map(collapsed, reward))
    lines.append(
        f"| `{algorithm}` | {reward[:, 0].mean():.3f} | {reward[:, -1].mean():.3f} ± {reward[:, -1].std():.3f} "
        f"| {reward.max(1).mean():.3f} | {kl[:, -1].mean():.3g} | {entropy[:, -1].mean():.3f} | {length[:, -1].mean():.1f} "
        f"| {f'{gone} of {len(reward)}' if gone else 'no'} |"
    )
(out / "table.md").write_text("\n".join(lines) + "\n")

figure, axes = plt.subplots(1, 4, figsize=(14, 0.26 * len(order) + 1.2), sharey=True, constrained_layout=True)
places = np.arange(len(order))[::-1]
for axis, (name, title) in zip(axes, COLUMNS.items(), strict=True):
    for place, algorithm in zip(places, order, strict=True):
        last = np.array([curve[-1] for curve in curves[algorithm][name]])
        color = "#C44E52" if any(map(collapsed, curves[algorithm]["reward/mean"])) else "#4C72B0"
        axis.plot([last.min(), last.max()], [place, place], color=color, linewidth=2, alpha=0.5)
        axis.plot(last.mean(), place, "o", color=color, markersize=5)
    axis.set(title=title, yticks=places, yticklabels=order)
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    if name == "actor/kl_k2":
        axis.set_xscale("log")
for suffix in ("png", "svg"):
    figure.savefig(out / f"figure.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None)
print("\n".join(lines))
