"""The margin figure beside the published one: `python figure.py RUNS FOLDER` writes curves.csv, table.md, figure.{png,svg}."""

import csv
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import yaml

from rlopt.tracking.journal import read_column

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STYLE = {"tiny_s-dpo": ("#4C72B0", "--"), "tiny_s-step_dpo": ("#4C72B0", "-"),
         "tiny_l-dpo": ("#DD8452", "--"), "tiny_l-step_dpo": ("#DD8452", "-")}  # fmt: skip
PUBLISHED = {"Qwen2-7B-DPO": "tiny_s-dpo", "Qwen2-7B-Step-DPO": "tiny_s-step_dpo",
             "Qwen2-72B-DPO": "tiny_l-dpo", "Qwen2-72B-Step-DPO": "tiny_l-step_dpo"}  # fmt: skip
MORE = ("preference/margin", "eval/preference/chosen", "eval/preference/rejected", "actor/kl_k2")
METRICS = {"margin": "eval/preference/margin", "accuracy": "eval/preference/accuracy"}

runs, out = Path(sys.argv[1]), Path(sys.argv[2])
published = json.loads((out / "published.json").read_text())
curves: dict[str, dict[str, np.ndarray]] = {}
with (out / "curves.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["run", "step", *METRICS.values(), *MORE])
    for label in STYLE:
        seeds = sorted(runs.glob(f"{label}-[123]"))
        there = np.isfinite(read_column(seeds[0], METRICS["margin"]))
        steps = np.array(read_column(seeds[0], "step"))[there]
        columns = {run: {name: np.array(read_column(run, name))[there] for name in (*METRICS.values(), *MORE)} for run in seeds}
        curves[label] = {name: np.array([columns[run][metric] for run in seeds]) for name, metric in METRICS.items()}
        curves[label]["steps"] = steps
        for run in seeds:
            for step, *values in zip(steps, *columns[run].values(), strict=True):
                writer.writerow([run.name, int(step), *(f"{value:.5g}" for value in values)])

figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
for row, (name, unit) in enumerate((("margin", "reward margin, held out"), ("accuracy", "preference accuracy, held out (%)"))):
    scale = 100 if name == "accuracy" else 1
    for label, (color, line) in STYLE.items():
        values = curves[label][name] * scale
        axes[row, 0].plot(curves[label]["steps"], values.mean(0), color=color, linestyle=line, linewidth=2, label=label)
        axes[row, 0].fill_between(curves[label]["steps"], values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    for label, like in PUBLISHED.items():
        steps, values = np.array(published[name][label]).T
        axes[row, 1].plot(steps, values, color=STYLE[like][0], linestyle=STYLE[like][1], linewidth=2, label=label)
    for axis, title in zip(axes[row], ("rlopt, three seeds", "published (arXiv:2406.18629, figure 2)"), strict=True):
        axis.set(title=title, xlabel="training step", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right" if title.startswith("rlopt") else "best")
    if name == "margin":
        axes[row, 0].set_ylim(bottom=0)
        axes[row, 1].set_ylim(bottom=0)
for suffix in ("png", "svg"):
    figure.savefig(out / f"figure.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None)

HEAD = (
    "model, algorithm, learning rate, margin at step 25, at step 250, preference accuracy at step 250, greedy before, after, "
)
HEAD += "temperature 1 before, after"
lines = [f"| {HEAD.replace(', ', ' | ')} |", "|---" * 10 + "|"]
for label in STYLE:
    model, _, algorithm = label.partition("-")
    before = json.loads((runs / f"{model}-before" / "accuracy.json").read_text())
    after = [json.loads((runs / f"{label}-{seed}" / "accuracy.json").read_text()) for seed in (1, 2, 3)]
    greedy, sampled = (np.array([a[key] for a in after]) for key in ("greedy", "sampled"))
    margin, accuracy = curves[label]["margin"], curves[label]["accuracy"]
    lr = yaml.safe_load((runs / f"{label}-1" / "config.yaml").read_text())["learner"]["lr"]
    cells = [
        model,
        algorithm,
        f"{lr:g}",
        f"{margin[:, 0].mean():.3f}",
        f"{margin[:, -1].mean():.3f} ± {margin[:, -1].std():.3f}",
        f"{accuracy[:, -1].mean():.3f}",
        f"{before['greedy']:.3f}",
        f"{greedy.mean():.3f} ± {greedy.std():.3f}",
        f"{before['sampled']:.3f}",
        f"{sampled.mean():.3f} ± {sampled.std():.3f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
(out / "table.md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
