"""What a run that failed leaves behind."""

import errno
from pathlib import Path

import pytest
import torch

from rlopt.core.errors import RloptError
from rlopt.run.failure import explained
from rlopt.run.launch import Outcome, kept


def failed(error: Exception) -> Exception:
    """The error as it was raised."""
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_failed_run_has_the_traceback_the_versions_and_the_config_in_error_txt(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("learner:\n  lr: 0.1\n")
    said = explained(failed(ValueError("two\nlines")), tmp_path)
    assert str(said) == f"ValueError: two (details: {tmp_path / 'error.txt'})"
    text = (tmp_path / "error.txt").read_text()
    assert "Traceback" in text
    assert "raise error\nValueError: two\nlines" in text
    assert f"torch {torch.__version__}" in text
    assert text.endswith("learner:\n  lr: 0.1\n")


def test_an_error_that_a_user_can_act_on_keeps_its_words(tmp_path: Path) -> None:
    said = explained(failed(RloptError("key=value: do this")), tmp_path)
    assert str(said) == f"key=value: do this (details: {tmp_path / 'error.txt'})"
    assert (tmp_path / "error.txt").read_text().endswith("no config.yaml")


def test_an_error_is_told_also_where_no_file_can_be_written(tmp_path: Path) -> None:
    said = explained(failed(RloptError("key=value: do this")), tmp_path / "gone")
    assert str(said).startswith(f"key=value: do this ({tmp_path / 'gone' / 'error.txt'} cannot be written: ")


def test_a_folder_that_cannot_be_written_any_more_is_named_with_the_way_out(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "checkpoints" / "step_1"))
    for error, why in ((full, "No space left on device"), (gone, "No such file or directory")):
        said = f"run.dir={tmp_path}: cannot be written any more ({why}); mend that, and the same command continues"
        assert str(explained(failed(error), tmp_path)).startswith(said)
    elsewhere = FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/rows.jsonl")
    assert str(explained(failed(elsewhere), tmp_path)).startswith("FileNotFoundError: [Errno 2] No such file")


def test_what_a_worker_raised_is_named_and_not_what_ray_made_of_it(tmp_path: Path) -> None:
    class Wrapped(Exception):
        """As Ray's error of a task, whose text begins with the actor's address."""

        cause = RuntimeError("no kernel for this card")

    said = explained(failed(Wrapped("ray::LearnerWorker.update() (pid=7, ip=127.0.0.1)")), tmp_path)
    assert str(said) == f"RuntimeError: no kernel for this card (details: {tmp_path / 'error.txt'})"
    assert "ray::LearnerWorker.update()" in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:122] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=["GPU", "CPU"],
)
def test_a_learner_without_memory_is_told_with_the_keys_that_save_some(raised: RuntimeError, tmp_path: Path) -> None:
    said = str(explained(failed(raised), tmp_path))
    assert said.startswith(f"a learner rank has no memory left ({raised}); lower learner.token_budget, set")
    assert "learner.offload=[optimizer,reference]" in said


def test_a_run_whose_folder_was_removed_while_it_ended_does_not_end_well(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path, tmp_path / "checkpoints" / "step_4", "training reward", 0.25, 0.5, 1, None)
    with pytest.raises(
        RloptError, match=f"^run.dir={tmp_path}: was removed while the run was ending, and what it made is gone"
    ):
        kept(outcome)
    outcome.checkpoint.mkdir(parents=True)
    assert kept(outcome) is outcome
