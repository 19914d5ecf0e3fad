"""What is written down, and what a resumed run's journal forgets."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from builders import group
from rich.console import Console

from rlopt.core.errors import RloptError
from rlopt.tracking.journal import Journal
from rlopt.tracking.loggers import Logger, Row
from rlopt.tracking.metrics import DEFINITIONS, batch_metrics
from rlopt.tracking.run_folder import read_column


def journal(folder: Path, step: int = 0, loggers: Sequence[Logger] = (), console: Console | None = None) -> Journal:
    console = console or Console(file=io.StringIO())
    return Journal(folder, step, total=10, log_samples=1, loggers=loggers, console=console, recorder=None)


class Flaky:
    """A logger that cannot show steps until it is opened again, or never can."""

    name = "flaky"

    def __init__(self, fails: set[int], mends: bool, closes: bool = True) -> None:
        self.fails, self.mends, self.closes = fails, mends, closes
        self.shown: list[int] = []

    def step(self, metrics: Mapping[str, float], samples: Sequence[Row]) -> None:
        if metrics["step"] in self.fails:
            raise ConnectionResetError
        self.shown.append(int(metrics["step"]))

    def reopen(self) -> None:
        if self.mends:
            self.fails = set()

    def close(self, exit_code: int) -> None:
        if not self.closes:
            raise OSError("the disk\nis full")


def events(folder: Path) -> list[tuple[object, ...]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(event["event"], event["board"], event["step"], event["why"]) for event in found]


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


def test_an_interruption_while_a_run_is_shown_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_logger_that_fails_is_opened_again_and_misses_no_step(tmp_path: Path) -> None:
    logger = Flaky({2}, mends=True)
    diary = journal(tmp_path, loggers=[logger])
    for step in (1, 2, 3):
        diary.step(metrics(step), [group()], None)
    diary.close(0)
    assert logger.shown == [1, 2, 3]
    assert events(tmp_path) == [("board_reopened", "flaky", 2, "ConnectionResetError")]


def test_a_logger_that_fails_for_good_is_left_out_with_one_line_and_the_run_continues(tmp_path: Path) -> None:
    said = io.StringIO()
    broken, sound = Flaky({2, 3}, mends=False), Flaky(set(), mends=True)
    diary = journal(tmp_path, loggers=[broken, sound], console=Console(file=said, width=200))
    for step in (1, 2, 3):
        diary.step(metrics(step), [group()], None)
    diary.close(0)
    assert (broken.shown, sound.shown) == ([1], [1, 2, 3])
    assert read_column(tmp_path, "step") == [1, 2, 3]
    assert events(tmp_path) == [("board_lost", "flaky", 2, "ConnectionResetError")]
    line = "warning: flaky shows nothing from step 2 on (ConnectionResetError); metrics.jsonl has everything"
    assert said.getvalue().count(line) == 1


def test_a_logger_that_does_not_close_costs_a_line(tmp_path: Path) -> None:
    said = io.StringIO()
    diary = journal(tmp_path, loggers=[Flaky(set(), mends=True, closes=False)], console=Console(file=said, width=200))
    diary.step(metrics(1), [group()], None)
    diary.close(0)
    assert "warning: flaky did not close (the disk)\n" in said.getvalue()


def test_a_metric_without_a_definition_is_an_error(tmp_path: Path) -> None:
    diary = journal(tmp_path)
    with pytest.raises(
        RloptError, match="metrics without a definition: .'reward/median'.; an objective's own begin with objective/"
    ):
        diary.step(metrics(1) | {"reward/median": 0.5}, [group()], None)
    diary.close(1)


def test_a_row_that_was_cut_short_is_mended_from_the_checkpoint_and_a_half_event_is_dropped(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.event("start")
    for step in (1, 2):
        first.step(metrics(step), [group()], None)
    kept = first.row
    first.close(0)
    file, told = tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    told.write_text(told.read_text() + '{"event": "sy')
    console = Console(file=io.StringIO())
    again = Journal(tmp_path, 2, 10, 1, [], console, None, kept)
    again.event("sync")
    again.close(0)
    assert file.read_text() == whole
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == ["start", "sync"]


def test_a_row_that_is_there_is_not_written_twice(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.step(metrics(1), [group()], None)
    first.close(0)
    whole = (tmp_path / "metrics.jsonl").read_text()
    Journal(tmp_path, 1, 10, 1, [], Console(file=io.StringIO()), None, first.row).close(0)
    assert (tmp_path / "metrics.jsonl").read_text() == whole
