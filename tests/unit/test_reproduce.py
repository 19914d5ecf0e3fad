"""What cannot be made again, and why; the real thing is in `tests/real/starts/test_faults.py`."""

import argparse
from pathlib import Path

import pytest
import yaml
from builders import group

from rlopt.core.errors import RloptError
from rlopt.data.rollout_log import NAME, group_to_json, member
from rlopt.reproduce import steps
from rlopt.run.reproduction import Difference, _compared, _recorded, config_of


@pytest.mark.parametrize(("text", "meant"), [("3:9", (3, 9)), ("3:", (3, None)), (":9", (1, 9)), ("7", (7, 7))])
def test_steps_are_read_as_a_slice(text: str, meant: tuple[int, int | None]) -> None:
    assert steps(text) == meant


def test_what_is_no_slice_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a:9: want FIRST:LAST, such as 21:40"):
        steps("a:9")


def test_a_folder_without_a_run_or_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="holds no run"):
        config_of(tmp_path)
    kept = yaml.safe_load((Path(__file__).parents[1] / "data" / "config_of_0.1.0.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(RloptError, match=r"kept no record of what it learned from; set run.record=true"):
        config_of(tmp_path)
    (tmp_path / NAME).touch()
    with pytest.raises(
        RloptError, match=r"was made by another release \(algo.kl.every: missing; give it a value\); use that one"
    ):
        config_of(tmp_path)


def record(path: Path) -> Path:
    blocks = [{"rlopt": "experience"}], *([{"step": step, **group_to_json(group(f"{step}"))}] for step in (1, 2, 3))
    (path / NAME).write_bytes(b"".join(member(rows) for rows in blocks))
    return path / NAME


def test_the_groups_of_the_steps_that_are_asked_for_come_in_order(tmp_path: Path) -> None:
    found = list(_recorded(record(tmp_path), after=1, last=3))
    assert [(step, [one.prompt.id for one in groups]) for step, groups in found] == [(2, ["2"]), (3, ["3"])]


def test_a_damaged_record_is_refused_with_its_byte(tmp_path: Path) -> None:
    file = record(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(RloptError, match="is damaged at byte .*; give steps before that"):
        list(_recorded(file, after=0, last=3))


def test_numbers_of_the_learner_are_compared_and_times_are_not() -> None:
    there, here = (
        {"step": 3, "actor/pg_loss": 0.1, "timing_s/update": 5.0},
        {"step": 3, "actor/pg_loss": 0.2, "timing_s/update": 6.0},
    )
    assert list(_compared(there, here)) == [Difference(3, "actor/pg_loss", 0.1, 0.2)]
