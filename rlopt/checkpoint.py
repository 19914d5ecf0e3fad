"""Checkpoints: `checkpoints/step_N/{learner/, hf/, buffer/, state.json, manifest.json}`.

Written to a folder aside, renamed, and only then given its manifest: a folder without one is no checkpoint. The buffer
holds batches that were sampled and not yet learned from, so that a resumed run repeats and skips nothing.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlopt.errors import RloptError
from rlopt.types import Group, Prompt, Sample


def save(
    run: Path, step: int, state: dict[str, Any], buffer: dict[int, list[Group]], write_model: Callable[[Path], None], keep: int
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest.

    Args:
        run: the run's folder.
        state: what `load_state` returns later; plain JSON.
        buffer: batches by number.
        write_model: puts `learner/` and `hf/` into the folder it is given.
    """
    target = run / "checkpoints" / f"step_{step}"
    aside = target.with_name(f".{target.name}.partial")
    for stale in (aside, target):  # a `target` here has no manifest, or belongs to steps that are being made again
        shutil.rmtree(stale, ignore_errors=True)
    (aside / "buffer").mkdir(parents=True)
    write_model(aside)
    for number, groups in buffer.items():
        lines = (json.dumps(_group_to_json(group)) for group in groups)
        (aside / "buffer" / f"batch_{number}.jsonl").write_text("".join(line + "\n" for line in lines))
    (aside / "state.json").write_text(json.dumps(state, indent=2))
    files = {str(path.relative_to(aside)): path.stat().st_size for path in sorted(aside.rglob("*")) if path.is_file()}
    aside.rename(target)
    draft = target / ".manifest.json"
    draft.write_text(json.dumps({"step": step, "files": files}, indent=2))
    os.replace(draft, target / "manifest.json")
    for old in find_all(run)[:-keep]:
        (old / "manifest.json").unlink()
        shutil.rmtree(old)
    return target


def find_all(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path.parent for path in run.glob("checkpoints/step_*/manifest.json")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def verify(folder: Path) -> None:
    """Refuse a checkpoint that lacks its manifest or a file of the right size."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise RloptError(f"run.resume={folder}: no manifest.json, so it is no complete checkpoint; give another or use auto")
    for name, size in json.loads(manifest.read_text())["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise RloptError(f"run.resume={folder}: {name} is missing or has not its {size} bytes; use an older checkpoint")


def load_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def load_buffer(folder: Path) -> dict[int, list[Group]]:
    """The batches that were sampled and not learned from."""
    return {
        int(path.stem.removeprefix("batch_")): [_group_from_json(json.loads(line)) for line in path.read_text().splitlines()]
        for path in (folder / "buffer").glob("batch_*.jsonl")
    }


def _group_to_json(group: Group) -> dict[str, Any]:
    samples = [
        {
            "token_ids": s.token_ids.tolist(),
            "spoken": s.spoken.tolist(),
            "logprobs": s.logprobs.tolist(),  # a float32 survives JSON unchanged
            "versions": s.versions.tolist(),
            "text": s.text,
            "finish": s.finish,
            "reward": s.reward,
            "parts": dict(s.parts),
        }
        for s in group.samples
    ]
    prompt = group.prompt
    about = {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "source": prompt.source}
    return {"prompt": about | {"token_ids": list(prompt.token_ids)}, "samples": samples, "refills": group.refills}


def _group_from_json(row: dict[str, Any]) -> Group:
    prompt = row["prompt"]
    prompt["token_ids"] = tuple(prompt["token_ids"])
    for sample in row["samples"]:
        sample["token_ids"] = np.array(sample["token_ids"], np.int32)
        sample["spoken"] = np.array(sample["spoken"], bool)
        sample["logprobs"] = np.array(sample["logprobs"], np.float32)
        sample["versions"] = np.array(sample["versions"], np.int32)
    return Group(Prompt(**prompt), tuple(Sample(prompt_id=prompt["id"], **sample) for sample in row["samples"]), row["refills"])
