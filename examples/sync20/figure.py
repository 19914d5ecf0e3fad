"""The four panels beside the published ones: `python figure.py RUNS FOLDER`.

Writes curves.csv (every step of the reported seeds), sweep.csv (what each run of the sweep came to), table.md (the learning
rates), claims.json (the twelve published trends, and in how many seeds each holds) and figure.{png,svg}.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sweep import ALGORITHMS, PANELS, STEPS, Run, choose, orders, read, rows, table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SEEDS, COLORS = (1, 2, 3), {"grpo": "#4C72B0", "rec_oneside_nois": "#DD8452", "red_weight": "#55A868"}
TITLES = {"reward": "training reward", "kl": "KL to the initial model", "entropy": "entropy", "length": "response length"}
UNITS = {"reward": "share of right answers", "kl": "nats a token (k2)", "entropy": "nats a token", "length": "tokens"}
Runs = Mapping[str, Run]
"""Name of a reported run (`algorithm-seed`) to the run."""

GRPO, REC, RED = ALGORITHMS
START, MIDDLE, END = (1, 20), (151, 250), (301, 400)
TRENDS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("reward", "GRPO's ends at over twice its beginning", ((GRPO, END, 2.0, GRPO, START),)),
    ("reward", "REC's ends at over twice its beginning", ((REC, END, 2.0, REC, START),)),
    ("reward", "RED-Weight's ends at over twice its beginning", ((RED, END, 2.0, RED, START),)),
    ("kl", "GRPO's rises to the end, and is the largest there",
     ((GRPO, END, 1.1, GRPO, MIDDLE), (GRPO, END, 1.0, REC, END), (GRPO, END, 1.0, RED, END))),
    ("kl", "REC's is highest in the middle, and falls", ((REC, MIDDLE, 1.0, REC, (51, 150)), (REC, MIDDLE, 1.1, REC, END))),
    ("kl", "RED-Weight's ends below half of GRPO's", ((GRPO, END, 2.0, RED, END),)),
    ("entropy", "GRPO's falls by over a quarter", ((GRPO, START, 4 / 3, GRPO, END),)),
    ("entropy", "REC's falls by over a half, and is the lowest",
     ((REC, START, 2.0, REC, END), (GRPO, END, 1.0, REC, END), (RED, END, 1.0, REC, END))),
    ("entropy", "RED-Weight's falls, but stays above GRPO's", ((RED, START, 1.1, RED, END), (RED, END, 1.0, GRPO, END))),
    ("length", "GRPO's answers shorten by over a quarter", ((GRPO, START, 4 / 3, GRPO, END),)),
    ("length", "REC's answers shorten by over a half, and are the shortest",
     ((REC, START, 2.0, REC, END), (GRPO, END, 1.0, REC, END), (RED, END, 1.0, REC, END))),
    ("length", "RED-Weight's answers shorten, but stay longer than GRPO's",
     ((RED, START, 1.1, RED, END), (RED, END, 1.0, GRPO, END))),
)  # fmt: skip
"""The published figure in twelve sentences. Each is a list of comparisons that all have to hold: the mean of a panel over some
steps is more than a factor times that of the same panel, of an algorithm, over some steps."""


def claims(runs: Runs) -> list[dict[str, Any]]:
    """In how many seeds each trend holds."""
    found = []
    for panel, trend, comparisons in TRENDS:
        holds = [
            all(
                runs[f"{left}-{seed}"].mean(panel, *early) > factor * runs[f"{right}-{seed}"].mean(panel, *late)
                for left, early, factor, right, late in comparisons
            )
            for seed in SEEDS
        ]
        compared = [
            {"left": [left, panel, *early], "factor": factor, "right": [right, panel, *late]}
            for left, early, factor, right, late in comparisons
        ]
        found.append({"trend": f"{TITLES[panel]}: {trend}", "all": compared, "seeds": len(SEEDS), "holds": sum(holds)})
    return found


def draw(runs: Runs, published: Any, out: Path) -> None:
    """Published panels above, ours below."""
    figure, axes = plt.subplots(2, 4, figsize=(17, 7.5), constrained_layout=True)
    for column, panel in enumerate(PANELS):
        for algorithm, label in ALGORITHMS.items():
            steps, values = np.array(published[panel][algorithm]).T
            axes[0, column].plot(steps, values, "--o", color=COLORS[algorithm], linewidth=1.5, label=label)
            several = np.array([runs[f"{algorithm}-{seed}"].panels[panel] for seed in SEEDS])
            windows = several.reshape(len(SEEDS), STEPS // 20, 20).mean(2)
            middles = np.arange(10.5, STEPS, 20)
            below = axes[1, column]
            below.plot(np.arange(1, STEPS + 1), several.mean(0), color=COLORS[algorithm], linewidth=0.5, alpha=0.35)
            below.fill_between(middles, windows.min(0), windows.max(0), color=COLORS[algorithm], alpha=0.2, linewidth=0)
            below.plot(middles, windows.mean(0), color=COLORS[algorithm], linewidth=2, label=label)
        axes[0, column].set(title=f"{TITLES[panel]}, published")
        axes[1, column].set(title=f"{TITLES[panel]}, rlopt", xlabel="training step", ylabel=UNITS[panel])
        for axis in axes[:, column]:
            axis.set_xlim(0, STEPS)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("points read off by eye")
    for axis in axes[:, 0]:
        axis.legend(frameon=False, loc="lower right")
    for suffix in ("png", "svg"):
        figure.savefig(out / f"figure.{suffix}", dpi=110, metadata={"Date": None} if suffix == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the folder of the runs")
    parser.add_argument("out", type=Path, help="where figure and numbers go")
    runs, out = vars(parser.parse_args()).values()
    chosen = {algorithm: choose(runs, algorithm) for algorithm in ALGORITHMS}
    reported = {f"{a}-{seed}": read(runs, a, rate, seed) for a, rate in chosen.items() for seed in SEEDS}
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "step", *PANELS])
        for name, run in reported.items():
            for step, values in enumerate(zip(*(run.panels[panel] for panel in PANELS), strict=True), start=1):
                writer.writerow([name, step, *(f"{value:.5g}" for value in values)])
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["algorithm", "learning_rate", "seed", "first_step", "last_step", *PANELS])
        for algorithm, rate, seed, run in rows(runs):
            for first in range(1, run.steps, 20):
                last = min(first + 19, run.steps)
                means = (f"{run.mean(panel, first, last):.5g}" for panel in PANELS)
                writer.writerow([algorithm, rate, seed, first, last, *means])
    (out / "claims.json").write_text(json.dumps(claims(reported), indent=1) + "\n")
    (out / "table.md").write_text(f"{table(runs)}\n\n{orders(runs)}\n")
    draw(reported, json.loads((out / "published.json").read_text()), out)


if __name__ == "__main__":
    main()
