"""Training from recorded rows, by the command: no samplers, exact over ranks, resumed to the same numbers."""

import json
from pathlib import Path

import crews
import pytest
from conftest import command, rows, train, try_out
from test_family import ROWS

from rlopt.run import workers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

EXACT = ("actor/pg_loss", "preference/margin", "preference/chosen", "actor/kl_k2", "eval/preference/margin")
WHY = "rejected is empty"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    broken = ROWS[0] | {"rejected": "", "full_rejected": ""}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, broken]))
    return file


def overrides(pairs: Path, *more: str) -> list[str]:
    small = ["data.prompts_per_step=4", "trainer.total_steps=6", "trainer.eval_every=3", "trainer.save_every=3"]
    return ["+algo=step_dpo", f"data.train={pairs}", f"data.eval={pairs}", "data.invalid_rows=drop", *small, *more]


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks. Its file has a last row that cannot be used."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = train(folder, *overrides(pairs, "learner.workers=2"))
    assert "preference margin" in done.stdout
    assert f"left out 1 row(s) of data.train: {WHY}" in done.stdout
    return folder


def test_the_margin_grows_and_is_measured_on_held_out_rows_when_it_is_time(whole: Path) -> None:
    steps = rows(whole / "metrics.jsonl")
    assert steps[0]["preference/margin"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["preference/margin"] > 0.05
    assert [row["step"] for row in steps if "eval/preference/margin" in row] == [3, 6]
    assert not any(name.startswith(("reward/", "sync/", "offpolicy/")) for row in steps for name in row)


@pytest.fixture(scope="module")
def alone(pairs: Path, crew: workers.RunWorkers, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of one rank."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    crews.train(crew, crews.prepared_for(folder, *overrides(pairs)), home / "fresh", keep=True)
    return folder


def test_two_ranks_report_what_one_does(whole: Path, alone: Path) -> None:
    one, two = rows(alone / "metrics.jsonl"), rows(whole / "metrics.jsonl")
    for name in EXACT:
        for mine, theirs in zip(one, two, strict=True):
            assert theirs.get(name, 0.0) == pytest.approx(mine.get(name, 0.0), rel=1e-2, abs=1e-4), (
                name
            )  # Adam magnifies rounding


def test_a_run_that_continues_from_a_checkpoint_ends_with_the_same_numbers(
    alone: Path, pairs: Path, crew: workers.RunWorkers, tmp_path: Path
) -> None:
    prepared = crews.prepared_for(tmp_path / "run", *overrides(pairs, f"run.resume={alone / 'checkpoints' / 'step_3'}"))
    crews.train(crew, prepared)
    one, two = rows(alone / "metrics.jsonl")[3:], rows(tmp_path / "run" / "metrics.jsonl")
    assert len(one) == 3
    assert [[row.get(name) for name in EXACT] for row in two] == [[row.get(name) for name in EXACT] for row in one]


def test_rows_that_cannot_be_used_are_refused_by_number_or_dropped_and_listed(whole: Path, pairs: Path, tmp_path: Path) -> None:
    refused = try_out(command(*overrides(pairs, "data.invalid_rows=refuse"), f"run.dir={tmp_path / 'no'}"))
    assert refused.returncode == 1
    number = len(ROWS) + 1
    assert f"data.train={pairs}: 1 of {number} rows are unusable (row {number}: {WHY})" in refused.stderr
    assert refused.stderr.count("\n") == 1
    (left_out,) = [event for event in rows(whole / "events.jsonl") if event["event"] == "rows_left_out"]
    assert left_out["data.train"] == {WHY: [number]}
