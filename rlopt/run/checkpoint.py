"""Checkpoints: `checkpoints/step_N/{learner/, hf/, buffer/, state.json, manifest.json}`.

Written to a folder aside, brought to disk, renamed, and only then given its manifest: a folder without one is not a checkpoint.
The manifest names every file with its size and digest, those that each learner rank says it wrote among them. The buffer holds
groups that were sampled and are still needed, so that a resumed run repeats and skips nothing.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from rlopt.core.atomic_write import all_to_disk, to_disk, write_whole
from rlopt.core.errors import DiskFull, RloptError
from rlopt.core.samples import PendingRollouts
from rlopt.data.rollout_log import group_from_json, group_to_json


def save(
    run: Path,
    step: int,
    state: dict[str, Any],
    pending: PendingRollouts,
    write_model: Callable[[Path], Mapping[str, int]],
    keep: int,
    best: "Best",
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest and the best.

    Args:
        run: the run's folder.
        state: what `load_state` returns later; plain JSON.
        pending: groups that were sampled and are still needed; a file per section.
        write_model: puts `learner/` and `hf/` into the folder it is given, and returns the files that the learner ranks have
            written there, each on its own node, with their sizes in bytes.

    Raises:
        RloptError: a file that a rank has written is not there: the run's folder is not the same on all nodes.
        DiskFull: the disk is full. The checkpoints before it stand.
    """
    target = run / "checkpoints" / f"step_{step}"
    aside = target.with_name(f".{target.name}.partial")
    for stale in (aside, target):  # a `target` here has no manifest, or belongs to steps that are being made again
        shutil.rmtree(stale, ignore_errors=True)
    try:
        manifest = _write(run, aside, state, pending, write_model) | {"step": step}
        aside.rename(target)
        to_disk(target.parent)
        write_whole(target / "manifest.json", json.dumps(manifest, indent=2))
        best.write()
    except Exception as error:
        free = shutil.disk_usage(run).free if run.is_dir() else 0
        shutil.rmtree(aside, ignore_errors=True)
        if free < FULL or any(says in str(error) for says in FULL_SAYS):
            raise DiskFull(
                f"run.dir={run}: has no room for the checkpoint of step {step}, {free / 2**20:.0f} MiB are left; make room, "
                "and the same command continues from the last one"
            ) from error
        raise
    for old in find_all(run)[:-keep]:
        if old.name != f"step_{best.step}":
            _remove(old)
    return target


FULL, FULL_SAYS = 2**20, ("No space left on device", "unexpected pos")
"""Bytes below which a disk is full, and what the system and torch say then: there may be room again when that is measured."""


def _write(
    run: Path, aside: Path, state: dict[str, Any], pending: PendingRollouts, write_model: Callable[[Path], Mapping[str, int]]
) -> dict[str, Any]:
    """Write everything but the manifest to `aside`, and to disk. Returns what the manifest says of the files."""
    (aside / "buffer").mkdir(parents=True)
    written = write_model(aside)
    for section, groups in pending.sections.items():
        lines = (json.dumps(group_to_json(group)) for group in groups)
        (aside / "buffer" / f"{section}.jsonl").write_text("".join(line + "\n" for line in lines))
    (aside / "state.json").write_text(json.dumps({**state, "stock": pending.facts}, indent=2))
    files = all_to_disk(aside)
    if lost := [name for name, size in written.items() if files.get(name) != size]:
        raise RloptError(
            f"run.dir={run}: {lost[0]}, which a learner rank wrote with {written[lost[0]]} bytes, is not there for all nodes; "
            "give a folder on storage that they share"
        )
    return {"files": files, "digests": _digests(aside, files)}


def forget(run: Path, step: int, damaged: Iterable[Path] = ()) -> None:
    """Remove the checkpoints of steps after `step`, which are made again: `latest` would be one of them. What was not finished
    goes too; what is damaged is renamed to `damaged_step_N`."""
    for folder in damaged:
        shutil.rmtree(aside := folder.with_name(f"damaged_{folder.name}"), ignore_errors=True)
        folder.rename(aside)
    for later in find_all(run):
        if step_of(later) > step:
            _remove(later)
    for unfinished in run.glob("checkpoints/.step_*.partial"):
        shutil.rmtree(unfinished)


def _remove(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("step_"))


class Best:
    """Which checkpoint of a run had the largest value of a metric, kept in `checkpoints/best.json`."""

    def __init__(self, run: Path, metric: str | None, step: int) -> None:
        """`step` is the step that the run continues after: what comes after it is made again."""
        self._file, self._metric = run / "checkpoints" / "best.json", metric
        self.step, self.value = -1, -math.inf
        if metric and self._file.exists():
            kept = json.loads(self._file.read_text())
            if kept["metric"] == metric and kept["step"] <= step:
                self.step, self.value = kept["step"], kept["value"]

    def improved(self, metrics: Mapping[str, float]) -> bool:
        """Whether the step with these metrics is the best so far; then it must be saved."""
        value = metrics.get(self._metric or "", -math.inf)
        if value <= self.value:
            return False
        self.step, self.value = int(metrics["step"]), value
        return True

    def write(self) -> None:
        if self.step >= 0:
            write_whole(self._file, json.dumps({"step": self.step, "metric": self._metric, "value": self.value}))


def find_all(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path.parent for path in run.glob("checkpoints/step_*/manifest.json")]
    return sorted(found, key=step_of)


def choose(run: Path, which: str) -> Path:
    """A complete checkpoint of a run, with its model as it was written: `latest`, `best`, or a step.

    Raises:
        RloptError: there is no such run or checkpoint, or the model is damaged.
    """
    found = {path.name.removeprefix("step_"): path for path in find_all(run)}
    if not found:
        raise RloptError(f"{run}: holds no complete checkpoint; give the folder of a run that has saved one")
    step, best = which, run / "checkpoints" / "best.json"
    if which == "latest":
        step = next(reversed(found))
    elif which == "best" and best.exists():
        step = str(json.loads(best.read_text())["step"])
    if step not in found:
        there = ", ".join(found)
        raise RloptError(f"{run}: has no checkpoint {which}; one of {there}, latest, or of a run with trainer.best, best")
    if why := damage(found[step], MODEL):
        others = ", ".join(found.keys() - {step}) or "there is none"
        raise RloptError(f"{run}: its checkpoint {step} is damaged, {why}; choose another: {others}")
    return found[step]


ALL, MODEL = ("",), ("hf/", "state.json")
"""How the files of a checkpoint begin that are verified: of all, and of those that whoever takes the model needs."""


def verify(folder: Path, only: tuple[str, ...] = ALL) -> None:
    """Refuse a checkpoint that lacks its manifest, or a file as it was written, of those that begin with one of `only`.

    Earlier releases kept sizes and no digests.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        raise RloptError(f"run.resume={folder}: no manifest.json, so it is not a complete checkpoint; give another or use auto")
    try:
        manifest = json.loads(file.read_text())
        sizes, digests = (
            {name: found for name, found in dict(kept).items() if name.startswith(only)}
            for kept in (manifest["files"], manifest.get("digests", {}))
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RloptError(f"run.resume={folder}: manifest.json cannot be read; use an older checkpoint") from None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise RloptError(f"run.resume={folder}: {name} is missing or has not its {size} bytes; use an older checkpoint")
    for name, found in _digests(folder, digests).items():
        if found != digests[name]:
            raise RloptError(f"run.resume={folder}: {name} is not as it was written; use an older checkpoint")


def damage(folder: Path, only: tuple[str, ...] = ALL) -> str | None:
    """Why `verify` refuses a checkpoint; None if it does not."""
    try:
        verify(folder, only)
    except RloptError as error:
        return str(error).partition(": ")[2].partition(";")[0]
    return None


def newest_sound(found: list[Path]) -> Path | None:
    """The newest of these checkpoints that is not damaged; None of none.

    Raises:
        RloptError: all are damaged.
    """
    why = ""
    for folder in reversed(found):
        if not (damaged := damage(folder)):
            return folder
        why = why or f"in {folder.name} {damaged}"
    if found:
        raise RloptError(f"run.dir={found[0].parent.parent}: no checkpoint is sound, {why}; choose another run.dir")
    return None


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """xxHash of files by their names in `folder`, several at a time: a checkpoint of a large model takes a minute to read."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> str:
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(2**24):
            hashed.update(piece)
    return hashed.hexdigest()


def load_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def sections(folder: Path) -> list[str]:
    """The names of the sections that `load_pending` gives."""
    return [path.stem for path in sorted((folder / "buffer").glob("*.jsonl"))]


def load_pending(folder: Path) -> PendingRollouts:
    """The groups that the run had sampled and still needs."""
    texts = {name: (folder / "buffer" / f"{name}.jsonl").read_text() for name in sections(folder)}
    groups = {name: [group_from_json(json.loads(line)) for line in text.split("\n")[:-1]] for name, text in texts.items()}
    return PendingRollouts(groups, load_state(folder)["stock"])
