"""Step pairs on the real stack: rows, files and counts, an interruption that changes no byte, and refusals."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import rows, try_out, until

from rlopt.data import arithmetic
from rlopt.step_pairs.files import on_eval_side
from rlopt.step_pairs.mining import MEANING

SMALL = ("pairs.count=20", "pairs.chunk=8", "pairs.continuations=4", "pairs.eval_share=0.3")
COLUMNS = ["dataset", "prompt", "initial_reason_steps", "chosen", "rejected", "full_chosen", "full_rejected", "answer"]
Made = tuple[Path, Path, Path]
SUFFIXES = (".jsonl", ".eval.jsonl", ".jsonl.counts.json")


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlopt.pairs", *overrides]


def start(*overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*SMALL, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refuse(*overrides: str, cwd: Path | None = None) -> str:
    done = try_out(command(*overrides), cwd)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three folders: of a command that ran through, of one that was interrupted and run again, and of one left interrupted."""
    folder = tmp_path_factory.mktemp("pairs")
    whole, halved, left = folder / "whole", folder / "halved", folder / "left"
    through = start(f"pairs.out={whole / 'pairs.jsonl'}")  # beside the other: each waits most of the time
    with start(f"pairs.out={halved / 'pairs.jsonl'}") as first:
        chunk = halved / "pairs.jsonl.partial" / "chunk_000001.json"
        until(chunk.exists, lambda: first.poll() is None, first.communicate)
        family = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert errors == "interrupted: finished chunks are kept, and the same command continues after them\n"
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [member.cmdline() for member in alive]
    assert [path.name for path in halved.iterdir()] == ["pairs.jsonl.partial"]
    shutil.copytree(halved, left)
    again = start(f"pairs.out={halved / 'pairs.jsonl'}")
    for process in (through, again):
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, printed + errors
        assert ("continuing after chunk" in printed) == (process is again)
    return whole, halved, left


def test_an_interrupted_command_ends_with_the_files_of_one_that_was_not_byte_for_byte(made: Made) -> None:
    whole, halved, _ = made
    for folder in (whole, halved):
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"pairs{suffix}" for suffix in SUFFIXES)
    for suffix in SUFFIXES:
        assert (whole / f"pairs{suffix}").read_bytes() == (halved / f"pairs{suffix}").read_bytes()


def test_every_row_prefers_a_right_step_over_the_first_wrong_one_of_a_wrong_answer(made: Made) -> None:
    train, evaluation = rows(made[0] / "pairs.jsonl"), rows(made[0] / "pairs.eval.jsonl")
    assert len(train) + len(evaluation) == 20
    assert train
    for row in train + evaluation:
        assert list(row) == COLUMNS
        prefix, right, wrong = row["initial_reason_steps"], row["full_chosen"], row["full_rejected"]
        assert (right.startswith(row["chosen"]), wrong.startswith(row["rejected"])) == (True, True)
        assert arithmetic.reward(row["prompt"], prefix + right, row["answer"]) == 1.0
        assert arithmetic.reward(row["prompt"], prefix + wrong, row["answer"]) == 0.0
        at = prefix.count("\n")
        assert arithmetic.locate(row["prompt"], arithmetic.split_steps(prefix + wrong), row["answer"]) == at
        place = arithmetic.locate(row["prompt"], arithmetic.split_steps(prefix + right), row["answer"])
        assert place is None or place > at
        assert row["chosen"] != row["rejected"]
    assert len({json.dumps(row) for row in train + evaluation}) == 20
    assert all(on_eval_side(row["prompt"], 0.3) for row in evaluation)
    assert not any(on_eval_side(row["prompt"], 0.3) for row in train)


def test_the_counts_say_where_every_answer_went(made: Made) -> None:
    counts = json.loads((made[0] / "pairs.jsonl.counts.json").read_text())
    assert list(counts) == list(MEANING)
    assert counts["answers"] == 2 * counts["prompts"] == counts["left_out"] + counts["right"] + counts["wrong"]
    ends = [what for what, meaning in MEANING.items() if meaning.startswith("dropped")] + ["rows_train", "rows_eval"]
    assert counts["wrong"] == sum(counts[what] for what in ends)
    assert counts["rows_train"] + counts["rows_eval"] == 20


def test_finished_rows_and_rows_of_another_config_are_not_written_over(made: Made) -> None:
    whole, _, left = made
    assert "pairs.jsonl is finished already; choose another pairs.out" in refuse(*SMALL, f"pairs.out={whole / 'pairs.jsonl'}")
    line = refuse(*SMALL, f"pairs.out={left / 'pairs.jsonl'}", "run.seed=43")
    assert "holds rows of another config, run.seed=43 (there: 42)" in line
    assert sorted(path.name for path in left.iterdir()) == ["pairs.jsonl.partial"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs.cont=3", "pairs.cont: no such key, did you mean pairs.count; see conf/pairs.yaml"),
        ("pairs.eval_share=1.0", "pairs.eval_share=1.0: must be at least 0 and below 1"),
        ("pairs.locate=nowhere:locate", "pairs.locate=nowhere:locate: cannot be imported"),
        ("pairs.split=rlopt.data.arithmetic:CHARACTERS", "pairs.split=rlopt.data.arithmetic:CHARACTERS: no function"),
        ("model.path=/nowhere", "model.path=/nowhere: no such folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    assert f"error: {message}" in refuse(override, cwd=tmp_path)
    assert not list(tmp_path.iterdir())
