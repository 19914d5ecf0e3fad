"""Checkpoints: complete or not there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from builders import group

from rlopt.core.errors import RloptError
from rlopt.core.samples import PendingRollouts
from rlopt.run import checkpoint


def write_model(folder: Path) -> dict[str, int]:
    (folder / "hf").mkdir()
    (folder / "hf" / "model.safetensors").write_bytes(b"12345678")
    return {"hf/model.safetensors": 8}


def nothing_best(run: Path) -> checkpoint.Best:
    return checkpoint.Best(run, None, 0)


def save(run: Path, step: int, keep: int = 2, best: checkpoint.Best | None = None) -> Path:
    sections = {f"batch_{step + 1}": [group("a", (0.25, 1.0), version=3)], f"batch_{step + 2}": [group("b")]}
    return checkpoint.save(
        run,
        step,
        {"position": {"step": step}},
        PendingRollouts(sections, {"next": 3}),
        write_model,
        keep,
        best or nothing_best(run),
    )


def test_what_was_sampled_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    pending = checkpoint.load_pending(save(tmp_path, 7))
    assert sorted(pending.sections) == ["batch_8", "batch_9"]
    assert pending.facts == {"next": 3}
    before, after = group("a", (0.25, 1.0), version=3), pending.sections["batch_8"][0]
    assert after.prompt.token_ids == before.prompt.token_ids
    for old, new in zip(before.samples, after.samples, strict=True):
        for name in ("token_ids", "action_mask", "logprobs", "versions"):
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

    def interrupted(folder: Path) -> dict[str, int]:
        write_model(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 10, {}, PendingRollouts({}, {}), interrupted, 2, nothing_best(tmp_path))
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_5"]
    assert save(tmp_path, 10).name == "step_10"


@pytest.mark.parametrize(("shard", "size"), [("learner/state/rank_1.pt", 6), ("hf/model.safetensors", 9)])
def test_a_shard_that_a_rank_wrote_on_another_disk_leaves_no_checkpoint(shard: str, size: int, tmp_path: Path) -> None:
    save(tmp_path, 5)

    def elsewhere(folder: Path) -> dict[str, int]:
        return {**write_model(folder), shard: size}

    with pytest.raises(RloptError, match=f"{shard}, which a learner rank wrote with {size} bytes, is not there for all nodes"):
        checkpoint.save(tmp_path, 10, {}, PendingRollouts({}, {}), elsewhere, 2, nothing_best(tmp_path))
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_5"]


def test_everything_is_on_disk_before_a_checkpoint_has_its_name_and_then_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def synced(handle: int) -> None:
        order.append(f"disk {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def named(path: Path, target: Path) -> Path:
        order.append(f"name {target.name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> None:
        order.append(f"name {target.name}")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", named)
    monkeypatch.setattr(os, "replace", replaced)
    save(tmp_path, 5)
    named_at = order.index("name step_5")
    written = {"model.safetensors", "hf", "state.json", "batch_6.jsonl", "buffer", ".step_5.partial"}
    assert {f"disk {name}" for name in written} <= {*order[:named_at]}
    assert order[named_at + 1 :] == ["disk checkpoints", "disk .manifest.json.aside", "name manifest.json", "disk step_5"]


def test_a_checkpoint_without_manifest_or_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    checkpoint.verify(folder)
    (folder / "hf" / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(RloptError, match="hf/model.safetensors is missing or has not its 8 bytes"):
        checkpoint.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RloptError, match="not a complete checkpoint"):
        checkpoint.verify(folder)


def test_the_best_checkpoint_stays_until_a_better_one_comes(tmp_path: Path) -> None:
    best = checkpoint.Best(tmp_path, "eval/x/greedy", 0)
    values = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.2}
    for step, value in values.items():
        assert best.improved({"step": step, "eval/x/greedy": value}) == (step in (1, 2))
        save(tmp_path, step, keep=1, best=best)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_2", "step_5"]
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {
        "step": 2,
        "metric": "eval/x/greedy",
        "value": 0.5,
    }
    assert not best.improved({"step": 6})  # nothing was evaluated
    assert best.improved({"step": 6, "eval/x/greedy": 0.6})


def test_a_resumed_run_knows_the_best_but_not_one_of_steps_that_it_makes_again(tmp_path: Path) -> None:
    best = checkpoint.Best(tmp_path, "m", 0)
    best.improved({"step": 4, "m": 0.5})
    save(tmp_path, 4, best=best)
    assert checkpoint.Best(tmp_path, "m", 4).value == 0.5
    assert checkpoint.Best(tmp_path, "m", 3).step == -1
    assert checkpoint.Best(tmp_path, "other", 4).step == -1


def test_checkpoints_of_steps_that_are_made_again_are_forgotten_so_that_latest_is_never_one_of_them(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step, keep=9)
    checkpoint.forget(tmp_path, 100)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_100"]
    save(tmp_path, 150)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == ["step_100", "step_150"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_100", "step_150"]


def test_a_flipped_byte_is_noticed_and_checkpoints_of_earlier_releases_are_compared_by_size(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    file = folder / "hf" / "model.safetensors"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(RloptError, match="step_5: hf/model.safetensors is not as it was written; use an older checkpoint"):
        checkpoint.verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digests"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.verify(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RloptError, match="manifest.json cannot be read"):
        checkpoint.verify(folder)


def test_a_model_that_is_not_as_it_was_written_is_not_handed_out_and_the_learners_files_do_not_matter(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step_10" / "buffer" / "batch_11.jsonl").unlink()
    assert checkpoint.choose(tmp_path, "latest").name == "step_10"
    (tmp_path / "checkpoints" / "step_10" / "state.json").write_text("{")
    why = r"checkpoint 10 is damaged, state.json is missing or has not its \d+ bytes; choose another: 5$"
    with pytest.raises(RloptError, match=why):
        checkpoint.choose(tmp_path, "latest")
    assert checkpoint.choose(tmp_path, "5").name == "step_5"


def test_the_newest_sound_checkpoint_is_found_and_damaged_ones_after_it_are_set_aside(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=3)
    folders = checkpoint.find_all(tmp_path)
    (folders[2] / "state.json").write_text("")
    assert checkpoint.newest_sound(folders) == folders[1]
    assert checkpoint.damage(folders[1]) is None
    damaged = {folders[2]: checkpoint.damage(folders[2]) or ""}
    assert damaged[folders[2]].startswith("state.json is missing or has not its ")
    (tmp_path / "checkpoints" / ".step_12.partial" / "hf").mkdir(parents=True)
    checkpoint.forget(tmp_path, 10, damaged)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["damaged_step_15", "step_10", "step_5"]
    for folder in folders[:2]:
        (folder / "state.json").unlink()
    with pytest.raises(RloptError, match="no checkpoint is sound, in step_10 state.json is missing or has"):
        checkpoint.newest_sound(checkpoint.find_all(tmp_path))
    assert checkpoint.newest_sound([]) is None


FULL = ["[Errno 28] No space left on device", "[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"]


@pytest.mark.parametrize("says", [*FULL, "a bug"])
def test_a_full_disk_is_said_in_one_line_and_the_checkpoints_before_stand(says: str, tmp_path: Path) -> None:
    save(tmp_path, 5)

    def full(folder: Path) -> dict[str, int]:
        write_model(folder)
        raise RuntimeError(says)

    expected = (RloptError, "has no room for the checkpoint of step 10, [0-9]+ MiB are left; make room, and the same")
    kind, said = expected if says in FULL else (RuntimeError, says)
    with pytest.raises(kind, match=said):
        checkpoint.save(tmp_path, 10, {}, PendingRollouts({}, {}), full, 2, nothing_best(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_5"]
