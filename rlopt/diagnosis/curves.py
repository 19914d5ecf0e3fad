"""Curves of runs as figures, tables and one page."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from rlopt.core.errors import RloptError
from rlopt.tracking.run_folder import config_of, read_column

matplotlib.use("Agg")  # no window is opened
from matplotlib import pyplot as plt

PANELS = {
    "reward/mean": ("Training Reward", "mean reward"),
    "actor/kl_k2": ("KL Divergence", "k2 against the initial model (nats/token)"),
    "actor/entropy": ("Entropy", "nats/token"),
    "response_length/mean": ("Response Length", "tokens"),
}


PREFERENCE_PANELS = {
    "eval/preference/margin": ("Reward Margin, held out", "implicit reward, chosen less rejected"),
    "eval/preference/accuracy": ("Preference Accuracy, held out", "share of pairs"),
    "preference/margin": ("Reward Margin, training", "implicit reward, chosen less rejected"),
    "actor/kl_k2": ("KL Divergence", "k2 against the initial model (nats/token)"),
}


IMITATION_PANELS = {
    "eval/actor/pg_loss": ("Loss, held out", "nats/token"),
    "actor/pg_loss": ("Loss, training", "nats/token"),
    "actor/entropy": ("Entropy", "nats/token"),
}


KINDS = {"reward/mean": PANELS, "preference/margin": PREFERENCE_PANELS, "actor/pg_loss": IMITATION_PANELS}
"""What is drawn of a run, by the first of these metrics that it has."""


COLORS = ("#4C72B0", "#DD8452", "#55A868", "#C44E52", "#8172B3", "#937860", "#DA8BC3", "#8C8C8C", "#CCB974", "#64B5CD")


SPAN = 20
"""Steps that a point of the thick line averages, and the table at the start and the end of a run."""


@dataclass(frozen=True)
class Curve:
    """One metric of one algorithm, cut to the shortest run: `[steps]` at which every seed has it, and `[seeds, steps]`."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def sparse(self) -> bool:
        """Whether it is measured only now and then."""
        return len(self.steps) > 1 and bool(np.diff(self.steps).min() > 1)


@dataclass(frozen=True)
class Family:
    """All runs of one algorithm."""

    label: str
    runs: list[Path]
    curves: dict[str, Curve]


def load(paths: list[Path]) -> list[Family]:
    """The runs at `paths`, gathered by algorithm in the order given.

    Raises:
        RloptError: a path is not a run, or a run has no steps yet.
    """
    by_label: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        if not (path / "config.yaml").is_file() or not (path / "metrics.jsonl").is_file():
            raise RloptError(f"{path}: not a run (no config.yaml and metrics.jsonl); give the folders of runs")
        if not read_column(path, "step"):
            raise RloptError(f"{path}: the run has made no step yet")
        config = config_of(path)
        by_label.setdefault((config["algo"]["name"], config["model"]["path"]), []).append(path)
    models = len({model for _, model in by_label})
    panels = panels_of(paths)
    return [
        Family(f"{algo}, {model}" if models > 1 else algo, runs, {name: _curve(runs, name) for name in panels})
        for (algo, model), runs in by_label.items()
    ]


def panels_of(paths: list[Path]) -> dict[str, tuple[str, str]]:
    """What is drawn of these runs: metric to title and unit.

    Raises:
        RloptError: some learned from rewards and others from preferences or answers, with no curve in common.
    """
    kinds = {next(name for name in KINDS if np.isfinite(read_column(path, name)).any()) for path in paths}
    if len(kinds) > 1:
        raise RloptError(f"runs that are measured by {' and '.join(sorted(kinds))} cannot share a figure; make one of each")
    return KINDS[kinds.pop()]


def draw(families: list[Family], stem: Path) -> list[Path]:
    """The 2x2 figure as `stem.png` and `stem.svg`."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    panels = next(panels for panels in KINDS.values() if panels.keys() == families[0].curves.keys())
    for axis, (name, (title, unit)) in zip(axes.flat, panels.items(), strict=True):
        for color, family in zip(COLORS * len(families), families, strict=False):
            curve = family.curves[name]
            label = family.label + (f" ({len(family.runs)} seeds)" if len(family.runs) > 1 else "")
            if curve.sparse:
                axis.plot(curve.steps, curve.values.mean(0), color=color, linewidth=2, marker="o", markersize=4, label=label)
            else:
                axis.plot(curve.steps, curve.values.mean(0), color=color, linewidth=0.6, alpha=0.5)
                axis.plot(*_blocks(curve), color=color, linewidth=2, label=label)
            if len(family.runs) > 1:
                axis.fill_between(curve.steps, curve.values.min(0), curve.values.max(0), color=color, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="training step", ylabel=unit)
        if not any(np.isfinite(family.curves[name].values).any() for family in families):
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color="gray")
        axis.grid(alpha=0.3)
        if name == "actor/kl_k2" and _spiky([family.curves[name] for family in families]):
            axis.set_yscale("log")
            axis.set_ylim(bottom=1e-3)
            axis.set_ylabel(f"{unit}, log")
        elif all(family.curves[name].values.min() >= 0 for family in families):
            axis.set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False, loc="lower right")
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files


def table(families: list[Family]) -> list[dict[str, Any]]:
    """Per algorithm and metric: mean over the first and the last `SPAN` steps, with the spread over seeds (population)."""
    rows = []
    for family in families:
        row: dict[str, Any] = {"algorithm": family.label, "seeds": len(family.runs)}
        for name, curve in family.curves.items():
            span = 1 if curve.sparse else min(SPAN, curve.values.shape[1])
            first, last = curve.values[:, :span].mean(1), curve.values[:, -span:].mean(1)
            row[name] = {"first": first.mean(), "last": last.mean(), "spread": last.std()}
        rows.append(row)
    return rows


def write_page(families: list[Family], figure: Path, page: Path) -> None:
    """One HTML file with the figure, the table and the configs inside it."""
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    runs = [{"path": run.name, "config": (run / "config.yaml").read_text()} for family in families for run in family.runs]
    page.write_text(
        template.render(
            image=base64.b64encode(figure.read_bytes()).decode(),
            rows=table(families),
            panels={name: (PANELS | IMITATION_PANELS | PREFERENCE_PANELS)[name][0] for name in families[0].curves},
            span=SPAN,
            runs=runs,
        )
    )


def _blocks(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds and over `SPAN` steps, each at the middle of its steps; a shorter rest is a block too."""
    edges = np.arange(0, len(curve.steps), SPAN)
    widths = np.diff([*edges, len(curve.steps)])
    middles = np.add.reduceat(curve.steps, edges) / widths
    return middles, np.add.reduceat(curve.values.mean(0), edges) / widths


def _spiky(curves: list[Curve]) -> bool:
    """Whether some early value is so large that a linear axis would hide the later ones."""
    later = max(curve.values[:, curve.values.shape[1] // 2 :].max() for curve in curves)
    return bool(max(curve.values.max() for curve in curves) > 3 * later)


def _curve(runs: list[Path], name: str) -> Curve:
    columns = [read_column(run, name) for run in runs]
    length = min(map(len, columns))
    values = np.array([column[:length] for column in columns])
    there = np.isfinite(values).all(0)
    if not there.any():  # nothing was held out
        there[:] = True
    steps = np.array(read_column(runs[0], "step")[:length])
    return Curve(steps[there], values[:, there])


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>rlopt report</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}img{width:100%}
table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f6;padding:1rem;overflow:auto}</style>
<h1>Training curves</h1><img alt="Training reward, KL divergence, entropy and response length against training steps"
src="data:image/png;base64,{{ image }}">
<p>Thin lines are means over seeds at every step, bands reach from the smallest to the largest seed, thick lines are means of
{{ span }} steps.</p>
<h2>First and last {{ span }} steps</h2><table><tr><th>algorithm</th><th>seeds</th>
{% for title in panels.values() %}<th>{{ title }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.algorithm }}</td><td>{{ row.seeds }}</td>{% for name in panels %}
<td>{{ "%.4g"|format(row[name].first) }} &rarr; {{ "%.4g"|format(row[name].last) }}
{% if row.seeds > 1 %}&plusmn; {{ "%.2g"|format(row[name].spread) }}{% endif %}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Runs</h2>{% for run in runs %}<details><summary>{{ run.path }}</summary><pre>{{ run.config }}</pre></details>{% endfor %}
</html>
"""
