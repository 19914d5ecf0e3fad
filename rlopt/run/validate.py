"""Everything that can be refused before a process of a run's own is started.

resolve the objective, the run's folder and the model -> load the data -> check what needs all of them
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlopt.cluster.threads import cores, engine_threads, learner_threads
from rlopt.config.schema import Config
from rlopt.core.errors import need
from rlopt.data.rollout_log import header
from rlopt.data.tokenization import fingerprint
from rlopt.data.wording import wording
from rlopt.models.loading import Shape, context_length, find_model, load_tokenizer, shape_of
from rlopt.models.sequence_parallel import check_shareable
from rlopt.models.tiny import RECIPES
from rlopt.objectives.core import LossTerms, Objective
from rlopt.orchestrator.schedule import Schedule
from rlopt.rewards.pool import load as load_reward
from rlopt.rewards.pool import need_answers
from rlopt.rollout.episode_setup import EpisodeSetup, of_episodes, prepare
from rlopt.run.datasets import RunData, load_data
from rlopt.run.memory import plan
from rlopt.run.objective import make_objective, make_terms, reference_every
from rlopt.run.precision import Precision, choose
from rlopt.run.resume import continued, damaged_after, find_resume, of_another_run, why_left_behind, write_config
from rlopt.tracking.journal import TrainingBar


@dataclass(frozen=True)
class ModelFiles:
    """The initial model: its folder, sizes, tokenizer, and the dtype that it has in learner and engine."""

    folder: Path
    shape: Shape
    tokenizer: Any
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        return self.precision.dtype


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        run: its folder.
        resume: the checkpoint that it continues from, or None.
        state: of that checkpoint, or to begin with.
        left_behind: why the samples in it are not used by this run, or None.
        damaged: newer checkpoints that cannot be used, and why.
    """

    run: Path
    resume: Path | None
    state: dict[str, Any]
    left_behind: str | None
    damaged: Mapping[Path, str] = field(default_factory=dict)

    @property
    def origin(self) -> Path | None:
        """The folder of the run that this one is a fork of, where it begins with a checkpoint of that."""
        return self.resume.resolve().parent.parent if self.resume and of_another_run(self.resume, self.run) else None


@dataclass(frozen=True)
class Threads:
    """Of each worker of a kind."""

    engine: int
    learner: int


@dataclass(frozen=True)
class Prepared:
    """A validated run, before it starts any process. `about` is the first line of a record of it. In `config`, `model.dtype` is
    decided."""

    config: Config
    objective: Objective
    terms: LossTerms
    start: Start
    model: ModelFiles
    data: RunData
    about: Mapping[str, object]
    episodes: EpisodeSetup | None

    @property
    def threads(self) -> Threads:
        """Of engines and learner ranks on CPUs."""
        asked, size = self.config.cluster.cpu_threads, self.model.shape.parameters
        workers = self.config.learner.workers + (self.config.rollout.engines if self.data.prompts else 0)
        return Threads(engine_threads(asked, size, workers, cores()), learner_threads(asked, size, workers, cores()))

    @property
    def reference_every(self) -> int:
        """Steps from one use of the reference to the next; 0: there is none."""
        return reference_every(self.config, self.objective)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.config.sync.interval, self.config.sync.offset)


def validate(config: Config, console: Console) -> Prepared:
    """Check what the typed config could not: files, models, lengths, and what stands in the run's folder."""
    objective, terms = make_objective(config), make_terms(config)
    if config.samples and config.env.scores != "environment":
        load_reward(config.reward.fn, config.reward.weights)
    run = Path(config.run.dir).resolve()
    resume = find_resume(config, run)
    model = _resolve_model(config, console, continued(run, resume))
    config = replace(config, model=replace(config.model, dtype=model.precision.name))
    about = header(fingerprint(model.tokenizer), config.model.path, config.rollout.temperature, config.rollout.top_p)
    words = wording(config.data, model.tokenizer)
    episodes = prepare(config.env, words, model.folder)
    words = of_episodes(words, episodes)
    data = load_data(config, objective, terms, words, about, context_length(model.folder))
    if config.env.scores != "environment":
        need_answers(config.reward.fn, data.unanswered)
    if data.experience:
        terms = replace(terms, off_policy=data.experience.has_logprobs)
    _check_best(config, list(data.evals))
    largest = max(config.group_size, data.experience.largest if data.experience else 0)
    check_sizes(config, objective, data.longest, largest)
    return Prepared(config, objective, terms, _start(config, run, resume), model, data, about, episodes)


def again(prepared: Prepared) -> Prepared:
    """The same run, to be started once more: from its newest sound checkpoint, or from the beginning."""
    config, run = prepared.config, prepared.start.run
    config = replace(config, run=replace(config.run, resume="auto"))
    start = _start(config, run, find_resume(config, run))
    if not start.resume:  # the same run in W&B, too
        start.state["wandb_id"] = prepared.start.state["wandb_id"]
    return replace(prepared, config=config, start=start)


def _start(config: Config, run: Path, resume: Path | None) -> Start:
    damaged = damaged_after(config, run, resume)
    return Start(run, resume, write_config(config, run, resume), why_left_behind(config, run, resume), damaged)


def _resolve_model(config: Config, console: Console, kept: Mapping[str, Any] | None) -> ModelFiles:
    folder = find_model(config.model.path, TrainingBar(console, f"training {config.model.path} (once on this machine)"))
    tokenizer = load_tokenizer(folder)
    check_shareable(folder, config.learner.sequence_parallel)
    shape = shape_of(folder, config.learner.lora)
    return ModelFiles(folder, shape, tokenizer, choose(config, shape, kept))


def dry_run(config: Config, console: Console) -> list[tuple[str, str]]:
    """What the config asks of the machines, as (subject, text). Reads the model's config and no data; starts nothing."""
    objective = make_objective(config)
    if config.samples:
        if config.env.scores != "environment":
            load_reward(config.reward.fn, config.reward.weights)
        if config.data.max_prompt_tokens:
            longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
            check_sizes(config, objective, longest, config.group_size)
    tiny = config.model.path in RECIPES
    progress = TrainingBar(console, f"training {config.model.path} (once on this machine)")
    folder = find_model(config.model.path, progress) if tiny else config.model.path
    check_shareable(folder, config.learner.sequence_parallel)
    shape = shape_of(folder, config.learner.lora)
    return plan(config, shape, choose(config, shape, None), reference_every(config, objective) > 0)


def _check_best(config: Config, sets: list[str]) -> None:
    best, count = config.trainer.best, config.eval.samples
    if best is None or not config.samples:
        return
    keys = [f"avg@{count}", f"pass@{count}"] * bool(count) + ["greedy"] * config.eval.greedy
    there = [f"eval/{name}/{key}" for name in sets for key in keys]
    need(best in there, "trainer.best", best, f"is not a metric of data.eval; one of {', '.join(there)}")


def check_sizes(config: Config, objective: Objective, longest: int, largest: int) -> None:
    """Refuse what could not be split into micro-batches later: `longest` sequence in tokens, `largest` group in samples."""
    groups_whole, learner = objective.traits.unit == "group", config.learner
    size = {"pairs": 2, "step_pairs": 2}.get(objective.traits.rows, largest) if groups_whole else 1
    least = -(-size * longest // learner.sequence_parallel)
    need(
        least <= learner.token_budget,
        "learner.token_budget",
        learner.token_budget,
        f"{size} sequence(s) of up to {longest} tokens must go into one micro-batch; set it to {least} at least",
    )
