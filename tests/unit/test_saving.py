"""Saving where the disk is full: ending, pausing until there is room, and refusing to start where there never will be."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import compose

from rlopt.config.schema import Config
from rlopt.core.appended import AppendedFile
from rlopt.core.errors import DiskFull, RloptError
from rlopt.core.samples import PendingRollouts
from rlopt.core.supervisor import Supervisor
from rlopt.models.loading import Shape
from rlopt.orchestrator.progress import Position
from rlopt.run import checkpoint, saving
from rlopt.run.memory import checkpoint_bytes
from rlopt.run.saving import Saving, check_room

SHAPE = Shape(parameters=1000, trainable=1000, layers=1, hidden=8, intermediate=8, kv_heads=1, head_dim=8, vocabulary=16)


def config(*overrides: str) -> Config:
    return compose("+algo=grpo", *overrides)


@pytest.mark.parametrize(
    ("stage", "width", "expected"),
    [(1, 2, 1000 * (2 + 2 + 12)), (3, 2, 1000 * (2 + 12)), (0, 4, 1000 * (4 + 4 + 8))],
)
def test_a_checkpoint_has_the_weights_twice_below_zero_3_and_the_optimizer(stage: int, width: int, expected: int) -> None:
    assert checkpoint_bytes(config(f"learner.zero_stage={stage}"), SHAPE, width) == expected


class Room:
    """A disk with so many bytes free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        monkeypatch.setattr(saving, "_free", lambda run: self.free)


KEPT = ("trainer.save_every=10", "trainer.total_steps=100", "trainer.keep_checkpoints=2")


@pytest.mark.parametrize(
    ("keys", "needed"),
    [(KEPT, 3), ((*KEPT, "trainer.total_steps=20"), 2), ((*KEPT, "trainer.save_every=0"), 1)],
)
def test_a_run_whose_checkpoints_will_not_fit_is_refused(
    keys: tuple[str, ...], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(monkeypatch, needed * 16_000)
    check_room(config(*keys), SHAPE, 2, tmp_path)
    room.free -= 1
    with pytest.raises(RloptError, match=rf"run.dir=.* free, and {needed} checkpoint\(s\) of .* KiB will not fit; choose"):
        check_room(config(*keys), SHAPE, 2, tmp_path)
    check_room(config(*keys, "trainer.on_disk_full=pause"), SHAPE, 2, tmp_path)
    (tmp_path / "checkpoints" / "step_10").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_10" / "model").write_bytes(b"x" * 16_000)  # which one of them replaces
    check_room(config(*keys), SHAPE, 2, tmp_path)


class Notes:
    """A journal that keeps its events."""

    row: Mapping[str, object] | None = None

    def __init__(self) -> None:
        self.events = list[str]()

    def event(self, kind: str, **facts: object) -> None:
        self.events.append(f"{kind} {facts.get('verdict', facts.get('step'))}")


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: set[int], *keys: str) -> tuple[Saving, Notes, list[int]]:
    """A run of 40 steps whose disk is full at those steps; what was saved."""
    notes, saved = Notes(), list[int]()

    def save(run: Path, step: int, *_: Any) -> Path:
        if step in full_at:
            raise DiskFull("has no room")
        saved.append(step)
        return run

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(saving, "score_canaries", lambda *_: [])
    run_config = config("trainer.total_steps=40", *keys)
    start = type("Start", (), {"run": tmp_path, "state": {"position": {"step": 0}, "wandb_id": "a"}})
    dtype = type("Dtype", (), {"itemsize": 4})
    model = type("Model", (), {"shape": SHAPE, "dtype": dtype, "tokenizer": None})
    prepared: Any = type("Prepared", (), {"config": run_config, "start": start, "model": model})
    workers: Any = type("Workers", (), {"learners": None})
    pauses = run_config.trainer.on_disk_full == "pause"
    return Saving(prepared, workers, notes, Supervisor(pauses=pauses, report=notes.event), []), notes, saved  # type: ignore[arg-type]


def at(step: int) -> Position:
    return Position(step=step)


NOTHING = PendingRollouts({}, {})


def test_a_full_disk_ends_a_run_that_is_not_to_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, notes, _ = made(tmp_path, monkeypatch, {20})
    assert run.save(at(10), NOTHING)
    with pytest.raises(DiskFull):
        run.save(at(20), NOTHING)
    assert notes.events == ["checkpoint 10", "disk_lost end"]


def test_saving_pauses_while_the_disk_is_full_and_goes_on_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(monkeypatch, 100)
    run, notes, saved = made(tmp_path, monkeypatch, {20}, "trainer.on_disk_full=pause")
    assert not run.asked({"step": 19})
    assert not run.save(at(20), NOTHING)
    assert not run.asked({"step": 21})
    room.free = 10**6
    assert run.asked({"step": 22})
    assert run.save(at(22), NOTHING)
    assert not run.asked({"step": 23})
    assert saved == [22]
    assert notes.events == ["disk_lost pause", "checkpoint 22"]


def test_the_last_checkpoint_is_not_left_out_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = made(tmp_path, monkeypatch, {40}, "trainer.on_disk_full=pause")
    with pytest.raises(DiskFull):
        run.save(at(40), NOTHING)


class Crowded(AppendedFile):
    """On a disk with `room` bytes left; it writes what fits, as Linux does."""

    content, room = b"", 5

    def _append(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = bytes(data[: self.room])
        self.content, self.room = self.content + written, self.room - len(written)
        return len(written)


def test_lines_wait_for_room_and_come_in_order_and_whole(tmp_path: Path) -> None:
    file = Crowded(tmp_path / "a", waits=True)
    for line in (b"one\n", b"two\n", b"three\n"):
        file.write(line)
    assert file.content == b"one\nt"
    file.room = 100
    file.write(b"four\n")
    assert file.content == b"one\ntwo\nthree\nfour\n"


def test_a_full_disk_is_an_error_where_nothing_is_to_wait(tmp_path: Path) -> None:
    file = Crowded(tmp_path / "a")
    with pytest.raises(OSError, match="No space left"):
        file.write(b"longer\n")


def test_a_file_that_was_removed_is_noticed_and_not_made_again(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "a")
    file.write(b"one\n")
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        file.write(b"two\n")
    assert not (tmp_path / "a").exists()
