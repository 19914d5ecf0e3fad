"""The figure's numbers, worked by hand."""

import json
from pathlib import Path

import numpy as np
import yaml

from rlopt.report import PANELS, Curve, _blocks, load, table


def write_run(folder: Path, algo: str, rewards: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"algo": {"name": algo}}))
    rows = [{"step": step, **dict.fromkeys(PANELS, reward)} for step, reward in enumerate(rewards, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_of_one_algorithm_become_one_curve_cut_to_the_shortest(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "x", [1, 2, 3]),
        write_run(tmp_path / "b", "y", [5]),
        write_run(tmp_path / "c", "x", [3, 4]),
    ]
    first, second = load(runs)
    assert (first.label, first.runs) == ("x", [runs[0], runs[2]])
    assert first.curves["reward/mean"].values.tolist() == [[1, 2], [3, 4]]
    assert second.curves["reward/mean"].values.tolist() == [[5]]


def test_the_thick_line_is_the_mean_of_each_twenty_steps_at_their_middle() -> None:
    values = np.array([np.arange(50.0), np.arange(50.0) + 2])
    steps, means = _blocks(Curve(np.arange(1.0, 51.0), values))
    assert steps.tolist() == [10.5, 30.5, 45.5]
    assert means.tolist() == [10.5, 30.5, 45.5]


def test_the_table_has_first_and_last_steps_and_the_spread_of_seeds(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "x", [0.0] * 20 + [1.0] * 20), write_run(tmp_path / "b", "x", [0.5] * 20 + [2.0] * 20)]
    (row,) = table(load(runs))
    assert (row["seeds"], row["reward/mean"]) == (2, {"first": 0.25, "last": 1.5, "spread": 0.5})
