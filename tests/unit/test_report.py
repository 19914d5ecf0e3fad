"""The figure's numbers, worked by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlopt import report
from rlopt.core.errors import RloptError
from rlopt.diagnosis.curves import PANELS, PREFERENCE_PANELS, Curve, _blocks, draw, load, table


def write_run(folder: Path, algo: str, rewards: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"algo": {"name": algo}, "model": {"path": "tiny_s"}}))
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


def write_preference_run(folder: Path, model: str, margins: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"algo": {"name": "dpo"}, "model": {"path": model}}))
    rows = [{"step": step, "preference/margin": margin, "actor/kl_k2": 0.1} for step, margin in enumerate(margins, 1)]
    for row in rows[1::2]:
        row |= {"eval/preference/margin": row["preference/margin"] / 2, "eval/preference/accuracy": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_preference_runs_have_panels_of_their_own_and_models_are_distinguished(tmp_path: Path) -> None:
    families = load([
        write_preference_run(tmp_path / "a", "tiny_s", [0.0, 1.0, 2.0, 3.0]),
        write_preference_run(tmp_path / "b", "tiny_l", [0.0, 2.0, 4.0, 6.0]),
    ])  # fmt: skip
    assert [family.label for family in families] == ["dpo, tiny_s", "dpo, tiny_l"]
    held_out = families[0].curves["eval/preference/margin"]
    assert (held_out.steps.tolist(), held_out.values.tolist(), held_out.sparse) == ([2, 4], [[0.5, 1.5]], True)
    assert table(families)[1]["eval/preference/margin"] == {"first": 1.0, "last": 3.0, "spread": 0.0}
    assert set(families[0].curves) == set(PREFERENCE_PANELS)
    assert all(file.stat().st_size for file in draw(families, tmp_path / "figure"))


def test_runs_with_nothing_in_common_do_not_share_a_figure(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "x", [1.0]), write_preference_run(tmp_path / "b", "tiny_s", [0.0, 1.0])]
    with pytest.raises(RloptError, match="runs that are measured by preference/margin and reward/mean cannot share a figure"):
        load(runs)


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", "grpo", [0.1, 0.2])
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--out", str(run / "config.yaml" / "page.html")])
    with pytest.raises(SystemExit, match=r"^error: --out=.*page.html: cannot be written \(.*\); choose another place"):
        report.main()
