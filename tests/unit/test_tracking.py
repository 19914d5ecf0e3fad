"""What is written down, and what a resumed run's journal forgets."""

import io
import json
import os
from pathlib import Path

import pytest
from builders import group
from rich.console import Console

from rlopt.errors import RloptError
from rlopt.metrics import DEFINITIONS, batch_metrics
from rlopt.tracking import Journal, read_column


def journal(folder: Path, step: int = 0) -> Journal:
    return Journal(folder, step, total=10, log_samples=1, boards=[], console=Console(file=io.StringIO()), recorder=None)


def metrics(step: int) -> dict[str, float]:
    return {"step": step, "actor/kl_k2": 0.1, "actor/entropy": float("nan"), **batch_metrics([group()], step, asked=4)}


def test_a_step_is_one_line_in_the_order_of_the_table_and_nan_becomes_null(tmp_path: Path) -> None:
    diary = journal(tmp_path)
    diary.step(metrics(1), [group()], None)
    diary.close(0)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(row) == [name for name in DEFINITIONS if name in row]
    assert row["actor/entropy"] is None
    assert row["offpolicy/dropped_frac"] == 0.5  # two samples of four
    assert (row["reward/mean"], row["reward/std"], row["reward/zero_std_frac"]) == (0.5, 0.5, 0.0)
    assert (row["response_length/min"], row["response_length/max"]) == (2, 3)


def test_a_resumed_journal_drops_the_steps_that_are_made_again_and_a_torn_line(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for step in (1, 2, 3):
        first.step(metrics(step), [group()], None)
    first.close(1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rewa')
    again = journal(tmp_path, step=2)
    again.step(metrics(3), [group()], None)
    again.close(0)
    assert read_column(tmp_path, "step") == [1, 2, 3]
    assert [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_an_interruption_while_a_run_goes_on_loses_no_line_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = journal(tmp_path)
    for step in (1, 2, 3):
        first.step(metrics(step), [group()], None)
    first.close(1)

    def interrupted(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal(tmp_path, step=2)
    assert read_column(tmp_path, "step") == [1, 2, 3]


def test_a_metric_without_a_definition_is_an_error(tmp_path: Path) -> None:
    diary = journal(tmp_path)
    with pytest.raises(
        RloptError, match="metrics without a definition: .'reward/median'.; an objective's own begin with objective/"
    ):
        diary.step(metrics(1) | {"reward/median": 0.5}, [group()], None)
    diary.close(1)
