"""Checkpoints: complete or not there."""

from pathlib import Path

import numpy as np
import pytest
from builders import group

from rlopt import checkpoint
from rlopt.errors import RloptError
from rlopt.types import Stock


def write_model(folder: Path) -> None:
    (folder / "hf").mkdir()
    (folder / "hf" / "model.safetensors").write_bytes(b"12345678")


def save(run: Path, step: int, keep: int = 2) -> Path:
    shelves = {f"batch_{step + 1}": [group("a", (0.25, 1.0), version=3)], f"batch_{step + 2}": [group("b")]}
    return checkpoint.save(run, step, {"position": {"step": step}}, Stock(shelves, {"next": 3}), write_model, keep)


def test_what_was_sampled_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    stock = checkpoint.load_stock(save(tmp_path, 7))
    assert sorted(stock.shelves) == ["batch_8", "batch_9"]
    assert stock.facts == {"next": 3}
    before, after = group("a", (0.25, 1.0), version=3), stock.shelves["batch_8"][0]
    assert after.prompt.token_ids == before.prompt.token_ids
    for old, new in zip(before.samples, after.samples, strict=True):
        for name in ("token_ids", "spoken", "logprobs", "versions"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
            assert getattr(new, name).dtype == getattr(old, name).dtype
        assert (new.text, new.finish, new.reward) == (old.text, old.finish, old.reward)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_10", "step_15"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_15"]


def test_a_checkpoint_that_an_interruption_left_half_written_is_none(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def interrupted(folder: Path) -> None:
        write_model(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 10, {}, Stock({}, {}), interrupted, 2)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_5"]
    assert save(tmp_path, 10).name == "step_10"


def test_a_checkpoint_without_manifest_or_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    checkpoint.verify(folder)
    (folder / "hf" / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(RloptError, match="hf/model.safetensors is missing or has not its 8 bytes"):
        checkpoint.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RloptError, match="no complete checkpoint"):
        checkpoint.verify(folder)
