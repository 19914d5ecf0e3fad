"""What each learning rate comes to: `python sweep.py choose RUNS` prints the rate of each algorithm.

The rule is the same for all: the rate whose training reward over the last 100 steps, mean of three seeds that are not reported,
is nearest to what was published for that algorithm. KL, entropy and length are then compared at like rewards, and play no part
in the choice.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

ALGORITHMS = {"grpo": "GRPO", "rec_oneside_nois": "REC-OneSide-NoIS", "red_weight": "RED-Weight"}
RATES = {
    **dict.fromkeys(("1e-5", "1.7e-5", "3e-5", "5.5e-5", "1e-4"), (4, 5, 6)),
    **dict.fromkeys(("3e-4", "1e-3"), (4,)),
}
"""Learning rate to the seeds that it was tried on: two are too large for all three algorithms."""

STEPS = 400
PANELS = {"reward": "reward/mean", "kl": "actor/kl_k2", "entropy": "actor/entropy", "length": "response_length/mean"}
READ = {**PANELS, "clipped": "actor/pg_clipfrac"}
"""What is read of a run; RED-Weight, which has no clip, does not log the last."""

PUBLISHED_REWARD = {"grpo": 0.75, "rec_oneside_nois": 0.72, "red_weight": 0.70}


@dataclass(frozen=True)
class Run:
    """Each of `READ` of a run, step by step; `steps` is how far it came."""

    panels: dict[str, list[float]]

    @property
    def steps(self) -> int:
        return len(self.panels["reward"])

    def mean(self, panel: str, first: int, last: int) -> float:
        """Over the steps `first` to `last`, both counted from 1 and inclusive."""
        return fmean(self.panels[panel][first - 1 : last])

    def highest(self, panel: str, span: int = 20) -> float:
        """The highest mean of a window of `span` steps, which is what one version of the sampler learned from."""
        return max(self.mean(panel, first, first + span - 1) for first in range(1, self.steps - span + 2, span))


def read(runs: Path, algorithm: str, rate: str, seed: int) -> Run:
    """A run of `run.sh`, rounded to the digits that curves.csv has."""
    rows = [json.loads(line) for line in (runs / f"{algorithm}-{rate}-{seed}" / "metrics.jsonl").read_text().splitlines()]
    return Run({panel: [float(f"{row.get(metric, 0.0):.5g}") for row in rows] for panel, metric in READ.items()})


def sweep(runs: Path, algorithm: str) -> Iterator[tuple[str, list[Run]]]:
    """Each rate, with the runs that were made at it."""
    for rate, seeds in RATES.items():
        yield rate, [read(runs, algorithm, rate, seed) for seed in seeds]


def choose(runs: Path, algorithm: str) -> str:
    """The rate by the rule above. A rate that was tried once, or at which a run ended early, is not taken."""
    ends = {
        rate: fmean(run.mean("reward", STEPS - 99, STEPS) for run in several)
        for rate, several in sweep(runs, algorithm)
        if len(several) > 1 and all(run.steps == STEPS for run in several)
    }
    return min(ends, key=lambda rate: abs(ends[rate] - PUBLISHED_REWARD[algorithm]))


COLUMNS = (
    "reward, last 100 steps",
    "KL, steps 151 to 250",
    "KL, last 100",
    "highest KL of 20 steps",
    "entropy, last 100",
    "length, last 100",
    "tokens clipped, %",
)


def table(runs: Path) -> str:
    """Every rate of every algorithm, mean and standard deviation over seeds, as Markdown."""
    lines = [f"| algorithm | learning rate | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for algorithm, label in ALGORITHMS.items():
        chosen = choose(runs, algorithm)
        for rate, several in sweep(runs, algorithm):
            if any(run.steps < STEPS for run in several):
                cells = [f"ended after {', '.join(str(run.steps) for run in several)} steps", *[""] * (len(COLUMNS) - 1)]
            else:
                values = [
                    [run.mean("reward", 301, 400) for run in several],
                    [run.mean("kl", 151, 250) for run in several],
                    [run.mean("kl", 301, 400) for run in several],
                    [run.highest("kl") for run in several],
                    [run.mean("entropy", 301, 400) for run in several],
                    [run.mean("length", 301, 400) for run in several],
                    [100 * run.mean("clipped", 1, STEPS) for run in several],
                ]
                cells = [f"{fmean(column):.3g}" + (f" ± {stdev(column):.1g}" if several[1:] else "") for column in values]
                if algorithm == "red_weight":
                    cells[-1] = "has no clip"
            lines.append(f"| {label} | {rate}{' **chosen**' if rate == chosen else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


ORDERS = {
    "REC's KL is below GRPO's": ("kl", "rec_oneside_nois", "grpo"),
    "RED-Weight's KL is below GRPO's": ("kl", "red_weight", "grpo"),
    "RED-Weight's KL is below REC's": ("kl", "red_weight", "rec_oneside_nois"),
    "REC's entropy is below GRPO's": ("entropy", "rec_oneside_nois", "grpo"),
    "GRPO's entropy is below RED-Weight's": ("entropy", "grpo", "red_weight"),
    "REC's answers are shorter than GRPO's": ("length", "rec_oneside_nois", "grpo"),
    "GRPO's answers are shorter than RED-Weight's": ("length", "grpo", "red_weight"),
}
"""Published orders over the last 100 steps: the panel, the algorithm below, the algorithm above."""


def orders(runs: Path) -> str:
    """At which learning rate, the same for all, which published order holds, and in how many seeds, as Markdown."""
    lines = [f"| order of the last 100 steps | {' | '.join(RATES)} |", "|---" * (len(RATES) + 1) + "|"]
    for order, (panel, below, above) in ORDERS.items():
        cells = []
        for rate, seeds in RATES.items():
            pairs = [[read(runs, algorithm, rate, seed) for algorithm in (below, above)] for seed in seeds]
            whole = [pair for pair in pairs if all(run.steps == STEPS for run in pair)]
            holds = sum(low.mean(panel, 301, 400) < high.mean(panel, 301, 400) for low, high in whole)
            cells.append(f"{holds} of {len(whole)}")
        lines.append(f"| {order} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows(runs: Path) -> Iterator[tuple[str, str, int, Run]]:
    """Every run of the sweep."""
    for algorithm, (rate, seeds) in product(ALGORITHMS, RATES.items()):
        for seed in seeds:
            yield algorithm, rate, seed, read(runs, algorithm, rate, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("choose",))
    parser.add_argument("runs", type=Path, help="the folder of the runs")
    asked = parser.parse_args()
    for name in ALGORITHMS:
        print(name, choose(asked.runs, name))
