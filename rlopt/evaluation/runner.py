"""Evaluates a model with real engines: starts them, requests all answers, and writes the numbers and every answer."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlopt.cluster.placement import Demand
from rlopt.cluster.ray_cluster import Cluster
from rlopt.config.commands import EvaluateJob
from rlopt.core.atomic_write import prepare_output, write_whole, writing
from rlopt.core.errors import RloptError
from rlopt.core.signals import undisturbed
from rlopt.data.prompts import Loaded
from rlopt.data.wording import wording
from rlopt.evaluation.datasets import limited, load_evals
from rlopt.evaluation.evaluator import Answers, Evaluator, sampling_specs
from rlopt.evaluation.pass_at_k import Estimate, estimate
from rlopt.models.loading import context_length, find_model, load_tokenizer
from rlopt.rewards.pool import load as load_reward
from rlopt.rewards.pool import need_answers
from rlopt.rollout.engine_pool import EnginePool
from rlopt.rollout.episode_setup import EpisodeSetup, of_episodes, prepare
from rlopt.rollout.vllm_engine import EngineConfig
from rlopt.rollout.worker import spawner
from rlopt.tracking.journal import TrainingBar

MOST_REVIVALS = 3
"""How often all engines may die before an evaluation ends."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a metric of a data set, over `prompts` of its prompts."""

    data: str
    metric: str
    estimate: Estimate
    prompts: int


@dataclass(frozen=True)
class Verdict:
    """The result of a finished evaluation.

    Attributes:
        unscored: answers that have no reward, by data set.
        tokens: of all answers.
        truncated: share of the answers that the length limit ended.
        seconds: from the first request to the last answer.
    """

    rows: list[Row]
    unscored: Mapping[str, int]
    numbers: Path
    answers: Path
    tokens: int
    truncated: float
    seconds: float


def evaluate(job: EvaluateJob, console: Console) -> Verdict:
    """The whole life of the command.

    Raises:
        RloptError: the config cannot be run, or a worker failed; nothing is left running.
    """
    if job.env.scores != "environment":
        load_reward(job.reward.fn, job.reward.weights)
    out = _free(job)
    prepare_output("evaluate.out", out)
    folder = find_model(job.model.path, TrainingBar(console, f"training {job.model.path} (once on this machine)"))
    tokenizer = load_tokenizer(folder)
    room = context_length(folder) - job.rollout.max_new_tokens
    words = wording(job.data, tokenizer)
    episodes = prepare(job.env, words, folder)
    words = of_episodes(words, episodes)
    sets = limited(load_evals(job.data, job.run.seed, words, room), job.eval.limit)
    if job.env.scores != "environment":
        unanswered = {f"data.eval ({name})": loaded.prompts[0] for name, loaded in sets.items() if not loaded.answered}
        need_answers(job.reward.fn, unanswered)
    for name, loaded in sets.items():
        left_out = sum(map(len, loaded.left_out.values()))
        line = f"{name}: {len(loaded.prompts)} prompts, {loaded.about}"
        console.print(line + (f"; {left_out} left out: {', '.join(loaded.left_out)}" if left_out else ""), highlight=False)
    answers, seconds = _ask(job, folder, sets, episodes, console)
    rows, unscored = _count(job, answers)
    samples = [sample for one in answers for group in one.groups for sample in group.samples]
    tokens = sum(sample.sampled for sample in samples)
    truncated = sum(sample.finish == "length" for sample in samples) / len(samples)
    numbers = ", ".join(f"{row.data} {row.metric} {row.estimate.value:.3f}" for row in rows)
    with writing("evaluate.out", out, f"; its numbers were {numbers}"):
        files = _write(job, out, rows, unscored, answers)
    return Verdict(rows, unscored, *files, tokens, truncated, seconds)


def _ask(
    job: EvaluateJob, folder: Path, sets: Mapping[str, Loaded], episodes: EpisodeSetup | None, console: Console
) -> tuple[list[Answers], float]:
    prompts = [len(prompt.token_ids) for loaded in sets.values() for prompt in loaded.prompts]
    opened = job.data.max_prompt_tokens if episodes and job.data.max_prompt_tokens else 0
    longest = max(*prompts, opened) + job.rollout.max_new_tokens
    engine = EngineConfig.without_learner(folder, job.model, job.cluster, job.rollout.engines, longest, job.run.seed)
    cluster, engines = Cluster(job.cluster), None
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    try:
        with console.status("starting engines"):
            cluster.reserve(Demand.of(job.cluster, job.rollout, job.rollout.engines, learners=0))
            spawn = spawner(cluster, job.cluster, engine, job.rollout, job.reward, 1, episodes)
            engines = EnginePool(spawn, job.rollout.engines, job.cluster.start_deadline_s, job.rollout.stall_s)
            engines.join_all()
        ways = sampling_specs(job.eval.samples, job.eval.temperature, job.eval.top_p, job.eval.greedy)
        evaluator = Evaluator(
            sets={name: loaded.prompts for name, loaded in sets.items()},
            sampling_specs=ways,
            right=job.eval.right,
            engines=engines,
            deadline_s=job.cluster.step_deadline_s,
            restore_engines=partial(_restore_engines, engines, iter(range(MOST_REVIVALS))),
        )
        with progress:
            task = progress.add_task("prompts", total=sum(len(loaded.prompts) for loaded in sets.values()) * len(ways))
            began = time.monotonic()
            return evaluator.answers(lambda done: progress.update(task, completed=done)), time.monotonic() - began
    finally:
        with undisturbed():
            if engines:
                engines.close()
            cluster.close()


def _restore_engines(engines: EnginePool, left: Iterator[int]) -> None:
    """Wait for the engines that replace those that died; they have their weights from the start."""
    if next(left, None) is None:
        raise RloptError(f"all engines died {MOST_REVIVALS + 1} times; is a prompt or rollout.kv_cache_gib too large for them?")
    engines.join_all()
    engines.assign_orphaned()


def _count(job: EvaluateJob, answers: list[Answers]) -> tuple[list[Row], dict[str, int]]:
    rows, unscored = list[Row](), dict[str, int]()
    for one in answers:
        unscored[one.name] = unscored.get(one.name, 0) + one.unscored
        for metric, values in one.scores(job.eval.right).items():
            rows.append(Row(one.name, metric, estimate(values, job.evaluate.rounds, job.run.seed), len(values)))
    if not rows:
        why = next((fault.why for one in answers for group in one.groups for fault in group.faults), "it left all of them out")
        raise RloptError(f"reward.fn={job.reward.fn}: gave no prompt a reward for all of its answers ({why})")
    return rows, unscored


def _free(job: EvaluateJob) -> Path:
    """Where the numbers go; an existing file is never overwritten."""
    if job.evaluate.out:
        out = Path(job.evaluate.out)
        if out.suffix != ".json":
            raise RloptError(f"evaluate.out={out}: must end with .json; the answers go beside it, to .answers.jsonl")
        there = [path for path in (out, _answers_of(out)) if path.exists()]
        if there:
            raise RloptError(f"evaluate.out={out}: {there[0]} is there already; choose another, or remove it")
        return out
    stem = Path("evaluation")
    if job.evaluate.run:
        stem = Path(job.evaluate.run) / "evaluations" / Path(job.model.path).parent.name
    number, out = 1, stem.with_name(f"{stem.name}.json")
    while out.exists() or _answers_of(out).exists():
        number += 1
        out = stem.with_name(f"{stem.name}-{number}.json")
    return out


def _answers_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.answers.jsonl")


def _write(
    job: EvaluateJob, out: Path, rows: list[Row], unscored: Mapping[str, int], answers: list[Answers]
) -> tuple[Path, Path]:
    beside = _answers_of(out)
    samples = [(one, group.prompt, sample) for one in answers for group in one.groups for sample in group.samples]
    lines = [
        {
            "data": one.name,
            "id": prompt.id,
            "temperature": one.sampling.temperature,
            "prompt": prompt.text,
            "answer": prompt.answer,
            "completion": sample.text,
            "reward": sample.reward,
            "parts": dict(sample.parts),
            "tokens": sample.sampled,
            "finish": sample.finish,
        }
        for one, prompt, sample in samples
    ]
    write_whole(beside, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    metrics = [
        {
            "data": row.data,
            "metric": row.metric,
            "value": row.estimate.value,
            "low": row.estimate.low,
            "high": row.estimate.high,
        }
        | {"prompts": row.prompts}
        for row in rows
    ]
    content = {"metrics": metrics, "unscored": unscored, "config": asdict(job)}
    write_whole(out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return out, beside
