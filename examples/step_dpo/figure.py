"""The margin figure beside the published one: `python figure.py RUNS FOLDER`.

Writes curves.csv (held-out margins and accuracies of the reported seeds), results.json and table.md (results and learning
rates), claims.json (the published trends, and in how many seeds each holds) and figure.{png,svg}. Of a model without runs in
RUNS it takes what an earlier call wrote to curves.csv and results.json.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import yaml

from rlopt.tracking.run_folder import read_column

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ALGORITHMS, SEEDS = ("dpo", "step_dpo"), (1, 2, 3)
COLORS, LINES = {"tiny_sums_s": "#4C72B0", "tiny_sums_l": "#DD8452"}, {"dpo": "--", "step_dpo": "-"}
PUBLISHED = {"Qwen2-7B-DPO": ("tiny_sums_s", "dpo"), "Qwen2-7B-Step-DPO": ("tiny_sums_s", "step_dpo"),
             "Qwen2-72B-DPO": ("tiny_sums_l", "dpo"), "Qwen2-72B-Step-DPO": ("tiny_sums_l", "step_dpo")}  # fmt: skip
METRICS = {"margin": "eval/preference/margin", "accuracy": "eval/preference/accuracy", "kl": "actor/kl_k2"}
Curves = Mapping[str, Mapping[str, np.ndarray]]
"""Name of a run (`model-algorithm-seed`) to its columns: `step`, and those of `METRICS`."""


def read(run: Path) -> dict[str, np.ndarray]:
    """The columns of a run at the steps where held-out pairs were measured, to the five digits that curves.csv has."""
    there = np.isfinite(read_column(run, METRICS["margin"]))
    columns = {name: np.array(read_column(run, metric))[there] for name, metric in {"step": "step", **METRICS}.items()}
    return {name: np.array([float(f"{value:.5g}") for value in values]) for name, values in columns.items()}


def at(curves: Curves, run: str, step: int, metric: str = "margin") -> float:
    """A metric of a run at a step."""
    return float(curves[run][metric][list(curves[run]["step"]).index(step)])


TRENDS = (
    ("Step-DPO's margin ends above DPO's", "margin", ("step_dpo", 250), 1.0, ("dpo", 250)),
    ("Step-DPO's margin ends at over twice DPO's", "margin", ("step_dpo", 250), 2.0, ("dpo", 250)),
    ("Step-DPO's margin still rises after step 100", "margin", ("step_dpo", 250), 1.1, ("step_dpo", 100)),
    ("DPO's margin is at 85% of its end from step 50 on", "margin", ("dpo", 50), 0.85, ("dpo", 250)),
    ("Step-DPO tells held-out pairs apart better than DPO", "accuracy", ("step_dpo", 250), 1.0, ("dpo", 250)),
)
"""Of the published figure, for each model: what is read, at which step, is more than a factor times something else."""


def claims(models: list[str], curves: Curves) -> list[dict[str, Any]]:
    """In how many seeds each trend holds. A side of a comparison: a run without its seed, a metric, a first and a last step."""
    found = []
    for model, (trend, metric, left, factor, right) in product(models, TRENDS):
        one, other = ([at(curves, f"{model}-{a}-{seed}", step, metric) for seed in SEEDS] for a, step in (left, right))
        holds = sum(mine > factor * theirs for mine, theirs in zip(one, other, strict=True))
        sides = ([f"{model}-{a}", metric, step, step] for a, step in (left, right))
        compared = dict(zip(("left", "right"), sides, strict=True)) | {"factor": factor}
        found.append({"trend": f"{model}: {trend}", "all": [compared], "seeds": len(SEEDS), "holds": holds})
    return found


def load(file: Path) -> dict[str, float]:
    """What a script beside this one has measured."""
    return dict(json.loads(file.read_text()))


def measured(runs: Path, model: str, curves: Curves) -> dict[str, Any]:
    """What came of a model's runs; of several seeds the mean and the standard deviation."""
    found: dict[str, Any] = {"before": load(runs / f"{model}-before" / "accuracy.json"), "reported": {}, "rates": {}}
    for algorithm in ALGORITHMS:
        several = [runs / f"{model}-{algorithm}-{seed}" for seed in SEEDS]
        after, places = ([load(run / f"{file}.json") for run in several] for file in ("accuracy", "places"))
        found["reported"][algorithm] = {
            "learning_rate": yaml.safe_load((several[0] / "config.yaml").read_text())["learner"]["lr"],
            **{key: [fmean(one[key] for one in after), float(np.std([one[key] for one in after]))] for key in after[0]},
            **{part: fmean(place[part] for place in places) for part in ("step", "after")},
        }
        tried = {run.name.partition(f"{algorithm}-")[2]: run for run in runs.glob(f"tune-{model}-{algorithm}-*/")}
        found["rates"][algorithm] = rates = {}
        for lr, run in sorted(tried.items(), key=lambda one: float(one[0])):
            curve = {run.name: read(run)}
            rates[lr] = {
                "margins": [at(curve, run.name, step) for step in (50, 100, 250)],
                "pair_accuracy": at(curve, run.name, 250, "accuracy"),
                **load(run / "accuracy.json"),
                "after_chosen": load(run / "places.json")["after_chosen"],
            }
    return found


HEAD = "model | algorithm | learning rate | margin at step 50 | at 100 | at 250 | pair accuracy"


def table(results: Mapping[str, Any], curves: Curves) -> str:
    """Reported seeds, and below them every learning rate on the seed on which it was chosen, as Markdown."""
    head = f"{HEAD} | greedy before | after | temperature 1 before | after | margin in the step, nats | after it"
    lines = [f"| {head} |", "|---" * 13 + "|"]
    for model, algorithm in product(results, ALGORITHMS):
        names, one = [f"{model}-{algorithm}-{seed}" for seed in SEEDS], results[model]["reported"][algorithm]
        cells = [f"{fmean(at(curves, name, step) for name in names):.2f}" for step in (50, 100)]
        ends = [at(curves, name, 250) for name in names]
        cells += [f"{fmean(ends):.2f} ± {np.std(ends):.2f}", f"{fmean(at(curves, n, 250, 'accuracy') for n in names):.3f}"]
        for key in ("greedy", "sampled"):
            cells += [f"{results[model]['before'][key]:.3f}", "{:.3f} ± {:.3f}".format(*one[key])]
        cells += [f"{one[part]:.2f}" for part in ("step", "after")]
        lines.append(f"| {model} | {algorithm} | {one['learning_rate']:g} | {' | '.join(cells)} |")
    lines += ["", f"| {HEAD} | greedy | temperature 1 | after the chosen step, nats |", "|---" * 10 + "|"]
    for model, algorithm in product(results, ALGORITHMS):
        for lr, tried in results[model]["rates"][algorithm].items():
            cells = [f"{margin:.2f}" for margin in tried["margins"]]
            cells += [*(f"{tried[key]:.3f}" for key in ("pair_accuracy", "greedy", "sampled")), f"{tried['after_chosen']:.2f}"]
            lines.append(f"| {model} | {algorithm} | {lr} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], curves: Curves, published: Any, out: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(15, 7.5), constrained_layout=True)
    for row, (name, unit) in enumerate(
        (("margin", "reward margin, held out"), ("accuracy", "preference accuracy, held out (%)"))
    ):
        scale = 100 if name == "accuracy" else 1
        for model in results:
            for algorithm in ALGORITHMS:
                several = [curves[f"{model}-{algorithm}-{seed}"] for seed in SEEDS]
                values, steps = np.array([one[name] for one in several]) * scale, several[0]["step"]
                look = {"color": COLORS[model], "linestyle": LINES[algorithm]}
                axes[row, 0].plot(steps, values.mean(0), linewidth=2, label=f"{model}-{algorithm}", **look)
                axes[row, 0].fill_between(steps, values.min(0), values.max(0), color=COLORS[model], alpha=0.15, linewidth=0)
        for label, (model, algorithm) in PUBLISHED.items():
            steps, values = np.array(published[name][label]).T
            axes[row, 1].plot(steps, values, color=COLORS[model], linestyle=LINES[algorithm], linewidth=2, label=label)
        for axis, title in zip(axes[row], ("rlopt, three seeds", "published (arXiv:2406.18629, figure 2)"), strict=False):
            axis.set(title=title, xlabel="training step", ylabel=unit)
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
            if name == "margin":
                axis.set_ylim(bottom=0)
    groups = list(product(results, ALGORITHMS))
    names = [f"{model.removeprefix('tiny_')}\n{algorithm}" for model, algorithm in groups]
    before = [results[model]["before"]["sampled"] for model, _ in groups]
    reported = [results[model]["reported"][algorithm] for model, algorithm in groups]
    after = [one["sampled"][0] for one in reported]
    at_x = np.arange(len(groups))
    colors = [COLORS[model] for model, _ in groups]
    axes[0, 2].bar(at_x - 0.2, before, 0.4, color="#BBBBBB", label="before")
    axes[0, 2].bar(at_x + 0.2, after, 0.4, color=colors, label="after")
    axes[0, 2].set(title="the task, rlopt", ylabel="right answers at temperature 1, held out", ylim=(0, 1))
    parts = {part: np.array([one[part] for one in reported]) for part in ("step", "after")}
    axes[1, 2].bar(at_x - 0.2, parts["step"], 0.4, color=colors, label="in the step where answers part")
    axes[1, 2].bar(at_x + 0.2, parts["after"], 0.4, color=colors, alpha=0.4, label="in what follows it")
    axes[1, 2].set(title="where the margin is, rlopt", ylabel="log-ratio, chosen minus rejected (nats)")
    for axis in axes[:, 2]:
        axis.set_xticks(at_x, names)
        axis.grid(alpha=0.3, axis="y")
        axis.legend(frameon=False, loc="upper left")
    axes[1, 2].set_ylim(top=1.3 * max(parts["step"].max(), parts["after"].max()))
    for suffix in ("png", "svg"):
        figure.savefig(out / f"figure.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None)


def earlier(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """What is in curves.csv."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in csv.DictReader(file.read_text().splitlines()) if file.exists() else ():
        columns = found.setdefault(row["run"], {"step": [], **{name: [] for name in METRICS}})
        for name, values in columns.items():
            values.append(float(row[name]))
    return {run: {name: np.array(values) for name, values in columns.items()} for run, columns in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the folder of the runs")
    parser.add_argument("out", type=Path, help="where figure and numbers go")
    runs, out = vars(parser.parse_args()).values()
    kept, curves = out / "results.json", earlier(out / "curves.csv")
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for model in COLORS:
        if (runs / f"{model}-{ALGORITHMS[-1]}-{SEEDS[-1]}" / "places.json").exists():
            curves |= {f"{model}-{a}-{s}": read(runs / f"{model}-{a}-{s}") for a in ALGORITHMS for s in SEEDS}
            results[model] = measured(runs, model, curves)
    results = {model: results[model] for model in COLORS if model in results}
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "step", *METRICS])
        for model, algorithm, seed in product(results, ALGORITHMS, SEEDS):
            run = f"{model}-{algorithm}-{seed}"
            for step, *values in zip(*curves[run].values(), strict=True):
                writer.writerow([run, int(step), *(f"{value:.5g}" for value in values)])
    kept.write_text(json.dumps(results, indent=1) + "\n")
    (out / "claims.json").write_text(json.dumps(claims(list(results), curves), indent=1) + "\n")
    (out / "table.md").write_text(table(results, curves) + "\n")
    draw(results, curves, json.loads((out / "published.json").read_text()), out)


if __name__ == "__main__":
    main()
