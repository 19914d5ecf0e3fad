"""How a run resumes from its folder: with the same numbers, as a fork, or not at all."""

import copy
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from rlopt.config.compose import current_algo, default_section, normalized
from rlopt.config.schema import Config
from rlopt.config.sections import DataConfig
from rlopt.core.atomic_write import write_whole
from rlopt.core.errors import RloptError
from rlopt.orchestrator.lockstep import batches_of
from rlopt.orchestrator.progress import Position
from rlopt.orchestrator.schedule import Schedule
from rlopt.run import checkpoint
from rlopt.run.engine_count import forget_wish
from rlopt.run.precision import dtype_of
from rlopt.tracking.run_folder import config_of

MAY_CHANGE: tuple[str, ...] = ("run", "trainer", "tracking", "cluster", "rollout.engines", "rollout.sleep", "rollout.stall_s")
MAY_CHANGE += ("algo.group_relative.kl.every", "learner.logit_chunk", "model.dtype", "env.workers", "env.episodes")
"""Sections and keys that a resumed run may change; the others decide its numbers. `model.dtype` may change to auto alone."""

NEW_KEYS = {
    **{("env", key): value for key, value in default_section("env").items()},
    ("learner", "compile"): False,
    ("learner", "deepspeed"): {},
    ("learner", "offload"): [],
    ("learner", "packing"): False,
    ("learner", "sequence_parallel"): 1,
    ("rollout", "vllm"): {},
}
"""Keys that runs of earlier releases have not recorded, with what these did."""


def with_new_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's config with the keys that its release did not have."""
    whole = copy.deepcopy(dict(config))
    for (section, key), before in NEW_KEYS.items():
        whole.setdefault(section, {}).setdefault(key, before)
    return whole


def find_resume(config: Config, run: Path) -> Path | None:
    """The checkpoint to continue from, or None to begin.

    Raises:
        RloptError: the folder holds another run, or this one cannot continue.
    """
    resume, kept, found = config.run.resume, kept_config(run), checkpoint.find_all(run)
    if resume == "never":
        if kept is not None:
            raise RloptError(f"run.resume=never: {run} holds a run already; choose another run.dir, or run.resume=auto")
        return None
    if kept is not None and (differs := _differences(config, kept)):
        raise RloptError(f"run.dir={run}: holds another run, {'; '.join(differs[:3])}; choose another run.dir, or its values")
    origin = _origin(kept, run)
    if resume == "auto":
        # A fork that was interrupted before its first checkpoint begins again.
        folder = checkpoint.newest_sound(found) or origin
    else:
        folder = found[-1] if found else origin
        named = Path(resume).resolve()
        if not of_another_run(named, run) or kept is None:
            folder = named
        elif named != origin:
            raise RloptError(f"run.resume={resume}: is not a checkpoint of {run}, which holds a run; choose another run.dir")
    if folder:
        if resume != "auto" or not found:
            checkpoint.verify(folder)
        _check_extension(config, run, folder)
    return folder


def damaged_after(config: Config, run: Path, resume: Path | None) -> dict[Path, str]:
    """The checkpoints of this run that `run.resume=auto` passed over because they are damaged, and why."""
    found = checkpoint.find_all(run)
    if config.run.resume != "auto" or resume not in found:
        return {}
    return {folder: why for folder in found[found.index(resume) + 1 :] if (why := checkpoint.damage(folder))}


def _origin(kept: Mapping[str, Any] | None, run: Path) -> Path | None:
    """The checkpoint of another run that the run in this folder began with."""
    resume = (kept or {}).get("run", {}).get("resume", "auto")
    return Path(resume) if resume not in ("auto", "never") and of_another_run(Path(resume), run) else None


def _check_extension(config: Config, run: Path, folder: Path) -> None:
    """Refuse to continue where nothing is left to do, or where the weights to sample with are gone."""
    state, total = checkpoint.load_state(folder), config.trainer.total_steps
    step = state["position"]["step"]
    if step >= total:
        raise RloptError(
            f"trainer.total_steps={total}: {folder} has made {step} steps already; raise it, or choose another run.dir"
        )
    asked = [batch for batch, _ in state["stock"].get("again", [])]
    batch = max([step, *batches_of(checkpoint.sections(folder)), *asked]) + 1
    version = Schedule(config.sync.interval, config.sync.offset).version(batch)
    in_turn = config.samples and config.sync.mode == "lockstep" and step not in state["stock"].get("revived", [])
    if in_turn and batch <= total and version < step and not why_left_behind(config, run, folder):
        raise RloptError(
            f"trainer.total_steps={total}: {folder} ended a run, and the weights of step {version}, which are to sample batch "
            f"{batch}, are gone; begin another run with model.path={folder / 'hf'}"
        )


def kept_config(run: Path) -> dict[str, Any] | None:
    """The config of the run in a folder."""
    if not (run / "config.yaml").exists():
        return None
    try:
        kept: dict[str, Any] = normalized(config_of(run))
    except RloptError as error:
        raise RloptError(f"run.dir={run}: its config.yaml cannot be read as one; choose another run.dir") from error
    if isinstance(shared := kept.get("algo", {}).get("group_relative"), dict):
        kept["algo"]["group_relative"] = current_algo(shared)
    return kept


def continued(run: Path, resume: Path | None) -> Mapping[str, Any] | None:
    """The config of the run that this one continues: the one in its folder, or the one that `resume` is of."""
    return kept_config(run) or (kept_config(resume.parent.parent) if resume else None)


def of_another_run(folder: Path, run: Path) -> bool:
    """Whether a checkpoint is not one of this run."""
    return folder.resolve().parent.parent != run.resolve()


def write_config(config: Config, run: Path, resume: Path | None) -> dict[str, Any]:
    """Make the run's folder and write its config, after `find_resume` accepted it. Returns the state to begin with."""
    mine, theirs = _plain(config), kept_config(run)
    if theirs is not None and mine["rollout"]["engines"] != theirs["rollout"]["engines"]:
        forget_wish(run)
    forked = resume if resume and of_another_run(resume, run) else _origin(theirs, run)
    mine["run"]["resume"] = str(forked) if forked else "auto"
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / "config.yaml", yaml.safe_dump(mine, sort_keys=False))
    state: dict[str, Any] = checkpoint.load_state(resume) if resume else {"position": asdict(Position())}
    if not resume or of_another_run(resume, run):  # a fork is another run in W&B too
        state["wandb_id"] = f"{re.sub(r'[^A-Za-z0-9_-]', '-', config.run.name)}-{uuid.uuid4().hex[:8]}"
    return state


def _plain(config: Config) -> dict[str, Any]:
    """The config as it is read back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _differences(config: Config, theirs: Mapping[str, Any]) -> list[str]:
    """The keys that decide a run's numbers and differ there."""
    here, there = _deciding(_plain(config)), _deciding(with_new_keys(theirs))
    names = [(section, key) for section in here for key in sorted({*here[section], *there.get(section, {})})]
    pairs = [(f"{section}.{key}", here[section].get(key), there.get(section, {}).get(key)) for section, key in names]
    pairs.append(("run.seed", config.run.seed, theirs.get("run", {}).get("seed")))
    found = [f"{name}={mine} (there: {kept})" for name, mine, kept in pairs if mine != kept]
    mine, kept = config.trainer.total_steps, theirs.get("trainer", {}).get("total_steps")
    if config.learner.lr_schedule != "constant" and mine != kept:
        found.append(f"trainer.total_steps={mine} (there: {kept}), on which learner.lr_schedule depends")
    if config.model.dtype not in ("auto", dtype_of(theirs)):  # auto: as there
        found.append(f"model.dtype={config.model.dtype} (there: {dtype_of(theirs)})")
    return found


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a plain config without what `MAY_CHANGE`."""
    deciding = copy.deepcopy(dict(config))
    for path in MAY_CHANGE:
        *above, name = path.split(".")
        tree = deciding
        for part in above:
            tree = tree.get(part) or {}
        tree.pop(name, None)
    return deciding


SAMPLED_BY = {
    "run": ["seed"],
    "data": [field.name for field in fields(DataConfig)],
    "reward": ["fn", "weights"],
    "env": ["fn", "tools", "options", "max_turns", "max_turn_tokens", "stop", "max_observation_chars", "parser", "reward"],
    "rollout": ["temperature", "top_p", "max_new_tokens"],
    "sync": ["mode", "interval", "offset", "max_lag", "in_flight", "stale"],
}
"""Section and keys that decide what is sampled next, and by which weights; beside them two of `algo`."""


def why_left_behind(config: Config, run: Path, resume: Path | None) -> str | None:
    """Why this run cannot use the samples that another run had not learned from; None if it can, or there are none."""
    if not resume or not of_another_run(resume, run) or not config.samples:
        return None
    mine, theirs = _plain(config), kept_config(resume.parent.parent)
    if theirs is None:
        return "no config.yaml beside them says how they were sampled"
    theirs = {"env": default_section("env"), **theirs}
    pairs = [
        (f"{section}.{key}", mine[section][key], theirs.get(section, {}).get(key))
        for section in SAMPLED_BY
        for key in SAMPLED_BY[section]
    ]
    groups = [raw.get("algo", {}).get("group_relative") or {} for raw in (mine, theirs)]
    pairs += [(f"algo.{key}", groups[0].get(key), groups[1].get(key)) for key in ("group_size", "refills")]
    return next((f"{name}={here} (there: {there})" for name, here, there in pairs if here != there), None)
