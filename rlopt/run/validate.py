"""Everything that can be refused before a process of a run's own is started: objective, data, lengths, the run's folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlopt.config.schema import Config
from rlopt.core.errors import RloptError, need
from rlopt.core.samples import Example, Prompt
from rlopt.data.offline_rollouts import Experience, Needs, load_experience
from rlopt.data.preferences import load_examples
from rlopt.data.prompts import Loaded, drop_eval_overlap, load_prompts
from rlopt.data.rollout_log import header
from rlopt.data.tokenization import fingerprint
from rlopt.data.unusable import normalize_text
from rlopt.data.wording import Wording, wording
from rlopt.evaluation.datasets import limited, load_evals
from rlopt.models.loading import Shape, context_length, find_model, load_tokenizer, shape_of
from rlopt.models.policy import try_to_save
from rlopt.models.tiny import RECIPES
from rlopt.objectives.core import LossTerms, Objective
from rlopt.orchestrator.schedule import Schedule
from rlopt.rewards.pool import load as load_reward
from rlopt.run.memory import plan
from rlopt.run.objective import _why_logprobs, make_objective, make_terms
from rlopt.run.resume import find_resume, why_left_behind, write_config
from rlopt.tracking.journal import TrainingBar


@dataclass(frozen=True)
class Recordings:
    """Rows of files: what is learned from, what is held out, which rows of each were left out and why, what else to know."""

    train: list[Example]
    held_out: list[Example]
    dropped: Mapping[str, Mapping[str, list[int]]]
    notes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Prepared:
    """A run before any process of its own.

    Attributes:
        state: of the checkpoint in `resume`, or to begin with.
        left_behind: why the samples in that checkpoint are none of this run's, or None.
        folder: of the model.
        data: to sample from; None where nothing is sampled.
        evals: to evaluate on, by short name.
        recordings: rows to learn from, in the place of groups.
        experience: recorded groups to learn from, alone or beside sampled ones.
        about: the first line of a record of this run.
        longest: sequence that may come, in tokens.
    """

    config: Config
    objective: Objective
    terms: LossTerms
    run: Path
    resume: Path | None
    state: dict[str, Any]
    left_behind: str | None
    folder: Path
    shape: Shape
    tokenizer: Any
    data: Loaded | None
    evals: Mapping[str, Loaded]
    recordings: Recordings | None
    experience: Experience | None
    about: Mapping[str, object]
    longest: int

    @property
    def prompts(self) -> list[Prompt]:
        """To sample from; none where nothing is sampled."""
        return self.data.prompts if self.data else []

    @property
    def left_out(self) -> dict[str, Mapping[str, list[int]]]:
        """By data set: reason to the numbers of the rows whose prompts are not among those sampled from or evaluated on."""
        train = {"data.train": self.data} if self.data else {}
        sets = train | {f"data.eval ({name})": loaded for name, loaded in self.evals.items()}
        return {name: loaded.left_out for name, loaded in sets.items() if loaded.left_out}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """By data set: what else people should know of its rows."""
        train = {"data.train": self.data} if self.data else {}
        sets = train | {f"data.eval ({name})": loaded for name, loaded in self.evals.items()}
        told = {name: loaded.notes for name, loaded in sets.items()} | dict(self.recordings.notes if self.recordings else {})
        return {name: notes for name, notes in told.items() if notes}

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.config.sync.interval, self.config.sync.offset)


def validate(config: Config, console: Console) -> Prepared:
    """Check what the typed config could not: files, models, lengths, and what stands in the run's folder."""
    objective = make_objective(config)
    terms = make_terms(config)
    run = Path(config.run.dir).resolve()
    resume = find_resume(config, run)
    folder = find_model(config.model.path, TrainingBar(console, f"training {config.model.path} (once on this machine)"))
    shape, tokenizer = shape_of(folder, config.learner.lora), load_tokenizer(folder)
    try_to_save(folder, dtype(config), tokenizer)
    words = wording(config.data, tokenizer)
    data, recordings, experience, longest = None, None, None, 0
    evals, eval_prompts = dict[str, Loaded](), list[Prompt]()
    about = header(fingerprint(tokenizer), config.model.path, config.rollout.temperature, config.rollout.top_p)
    context = context_length(folder)
    if config.samples:
        load_reward(config.reward.fn, config.reward.weights)
        room = context - config.rollout.max_new_tokens
        data = load_prompts(config.data, "data.train", config.data.train, config.run.seed, words, room)
        evals = load_evals(config.data, config.run.seed, words, room)
        eval_prompts = [prompt for loaded in evals.values() for prompt in loaded.prompts]
        data, evals = drop_eval_overlap(data, eval_prompts), limited(evals, config.eval.limit)
        longest = max(len(p.token_ids) for p in data.prompts + eval_prompts) + config.rollout.max_new_tokens
        _check_best(config, list(evals))
    if config.data.experience and config.algo.group_relative:
        needs = _needs(config, objective, terms, context, eval_prompts)
        drop = config.data.invalid_rows == "drop"
        experience = load_experience(config.data.experience, words, about, needs, drop)
        _check_wording(config, experience)
        terms = replace(terms, off_policy=experience.has_logprobs)
        longest = max(longest, experience.longest)
    if not config.algo.group_relative:
        recordings = _load_recordings(config, objective, words, context)
        rows = recordings.train + recordings.held_out
        longest = max(len(e.prompt.token_ids) + len(a) for e in rows for a in e.answers)
    largest = max(config.group_size, experience.largest if experience else 0)
    check_sizes(config, objective, longest, largest)
    state = write_config(config, run, resume)
    return Prepared(
        config=config,
        objective=objective,
        terms=terms,
        run=run,
        resume=resume,
        state=state,
        left_behind=why_left_behind(config, run, resume),
        folder=folder,
        shape=shape,
        tokenizer=tokenizer,
        data=data,
        evals=evals,
        recordings=recordings,
        experience=experience,
        about=about,
        longest=longest,
    )


def dry_run(config: Config, console: Console) -> list[tuple[str, str]]:
    """What the config asks of the machines, as (subject, text). Reads the model's config and no data; starts nothing."""
    objective = make_objective(config)
    if config.samples:
        load_reward(config.reward.fn, config.reward.weights)
        if config.data.max_prompt_tokens:
            longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
            check_sizes(config, objective, longest, config.group_size)
    tiny = config.model.path in RECIPES
    progress = TrainingBar(console, f"training {config.model.path} (once on this machine)")
    folder = find_model(config.model.path, progress) if tiny else config.model.path
    return plan(config, shape_of(folder, config.learner.lora), dtype(config).itemsize)


def _check_best(config: Config, sets: list[str]) -> None:
    best, count = config.trainer.best, config.eval.samples
    keys = [f"avg@{count}", f"pass@{count}"] * bool(count) + ["greedy"] * config.eval.greedy
    there = [f"eval/{name}/{key}" for name in sets for key in keys]
    need(best is None or best in there, "trainer.best", best, f"is no metric of data.eval; one of {', '.join(there)}")


def check_sizes(config: Config, objective: Objective, longest: int, largest: int) -> None:
    """Refuse what could not be split into micro-batches later: `longest` sequence in tokens, `largest` group in samples."""
    groups_whole, budget = objective.traits.unit == "group", config.learner.token_budget
    size = {"pairs": 2, "step_pairs": 2}.get(objective.traits.rows, largest) if groups_whole else 1
    need(
        size * longest <= budget,
        "learner.token_budget",
        budget,
        f"{size} sequence(s) of up to {longest} tokens must go into one micro-batch; set it to {size * longest} at least",
    )


def _needs(config: Config, objective: Objective, terms: LossTerms, context: int, held_out: list[Prompt]) -> Needs:
    """What is asked of recorded groups; `held_out` are the prompts that are evaluated on."""
    limit = min(context, config.learner.token_budget)
    why, texts = _why_logprobs(config, objective, terms), frozenset(normalize_text(prompt.text) for prompt in held_out)
    return Needs(limit, objective.traits.equal_rewards_no_credit, why, texts)


def _check_wording(config: Config, experience: Experience) -> None:
    """Refuse keys that word prompts where all prompts are token ids."""
    data, there = config.data, config.samples or experience.has_texts
    for key, value, default in (("template", data.template, None), ("chat", data.chat, "auto"), ("system", data.system, None)):
        why = f"means nothing to data.experience={data.experience}, whose prompts are token ids; drop it"
        need(there or value == default, f"data.{key}", value, why)


def _load_recordings(config: Config, objective: Objective, words: Wording, context: int) -> Recordings:
    rows = objective.traits.rows
    if rows == "groups":
        raise RloptError(f"algo={config.algo.name}: learns from groups, which are sampled and not recorded")
    budget = config.learner.token_budget // (2 if objective.traits.unit == "group" else 1)
    limit, data = min(context, budget), config.data
    train = load_examples("data.train", data, rows, words, limit, config.run.seed)
    dropped, held_out, notes = {"data.train": train.dropped}, list[Example](), {"data.train": train.notes}
    if data.eval:
        loaded = load_examples("data.eval", data, rows, words, limit, config.run.seed)
        held_out, dropped["data.eval"], notes["data.eval"] = loaded.examples, loaded.dropped, loaded.notes
        there = {normalize_text(example.prompt.text) for example in held_out}
        leaked = sum(normalize_text(example.prompt.text) in there for example in train.examples)
        notes["data.train"] += (f"{leaked} prompts are in data.eval too",) * bool(leaked)
    return Recordings(train.examples, held_out, dropped, notes)


def dtype(config: Config) -> torch.dtype:
    """Of learner and engine."""
    resolved: torch.dtype = getattr(torch, config.model.resolved_dtype(config.cluster.gpus_per_learner))
    return resolved
