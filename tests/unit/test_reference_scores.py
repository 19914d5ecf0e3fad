"""What the reference said of recorded rows, kept beside a run."""

import gzip
import json
from pathlib import Path

import numpy as np
from builders import prompt

from rlopt.core.samples import Example
from rlopt.data.reference_scores import NAME, ReferenceScores, row_key

ABOUT = {"model": "tiny_s", "dtype": "float32"}
FIRST = [np.array([-0.1, -1e-7], np.float32), np.array([-3.3333333], np.float32)]
SECOND = [np.array([], np.float32)]


def kept(folder: Path) -> Path:
    scores = ReferenceScores(folder, ABOUT, None)
    scores.add({"a": FIRST})
    scores.add({"b": SECOND})
    return folder / NAME


def test_what_was_kept_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    kept(tmp_path)
    again = ReferenceScores(tmp_path, ABOUT, None)
    assert all(np.array_equal(one, other) for one, other in zip(again["a"], FIRST, strict=True))
    assert [len(values) for values in again["b"]] == [0]
    assert "c" not in again


def test_a_batch_that_was_cut_short_is_forgotten_and_those_before_it_stand(tmp_path: Path) -> None:
    file = kept(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    again = ReferenceScores(tmp_path, ABOUT, None)
    assert "a" in again
    assert "b" not in again
    again.add({"c": SECOND})
    third = ReferenceScores(tmp_path, ABOUT, None)
    assert [key in third for key in "abc"] == [True, False, True]


def test_a_first_line_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    file = kept(tmp_path)
    file.write_bytes(file.read_bytes()[:5])
    assert "a" not in ReferenceScores(tmp_path, ABOUT, None)
    assert json.loads(gzip.decompress(file.read_bytes()))["model"] == "tiny_s"


def test_another_models_scores_are_forgotten(tmp_path: Path) -> None:
    kept(tmp_path)
    assert "a" not in ReferenceScores(tmp_path, ABOUT | {"dtype": "bfloat16"}, None)
    assert "a" not in ReferenceScores(tmp_path, ABOUT, None)  # and are gone


def test_a_fork_takes_over_what_the_first_run_had_scored(tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    (fork := tmp_path / "fork").mkdir()
    kept(first)
    assert "a" in ReferenceScores(fork, ABOUT, first)
    assert "a" in ReferenceScores(fork, ABOUT, tmp_path / "gone")
    assert "a" not in ReferenceScores(tmp_path, ABOUT, tmp_path / "gone")


def test_rows_are_known_by_their_tokens(tmp_path: Path) -> None:
    row = Example(prompt("a"), ((7, 8), (9,)))
    assert row_key(row) == row_key(Example(prompt("b"), ((7, 8), (9,))))
    others = [Example(prompt("a", 2), ((7, 8), (9,))), Example(prompt("a"), ((7,), (8, 9))), Example(prompt("a"), ((7, 8),))]
    assert len({row_key(row), *map(row_key, others)}) == 4
