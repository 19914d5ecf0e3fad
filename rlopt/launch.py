"""Builds everything once from the typed config, runs the loop, and takes everything down again."""

import importlib
import json
import re
import signal
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import AutoTokenizer

from rlopt import checkpoint
from rlopt.cluster import Cluster
from rlopt.config import Config
from rlopt.data import Dealer, load_prompts
from rlopt.errors import RloptError
from rlopt.learner import Learners, LearnerSetup, LearnerWorker
from rlopt.loop import Loop, Plan, Position
from rlopt.model import context_length, find_model
from rlopt.objectives.core import Objective, Terms
from rlopt.rewards import load as load_reward
from rlopt.rollout import EngineConfig, Rollouts, RolloutWorker
from rlopt.schedule import Schedule
from rlopt.settings import read
from rlopt.tracking import Journal, read_column, start_wandb
from rlopt.types import Group

CANARIES = 4
"""Prompts that engine and learner both score after a sync: enough to touch every weight, few enough to cost nothing."""

MAY_CHANGE = ("run", "trainer", "tracking", "cluster")
"""Sections that a resumed run may set anew; the others decide its numbers."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run can say of itself: the mean training reward of its first and last `span` steps, and its files."""

    folder: Path
    checkpoint: Path
    before: float
    after: float
    span: int
    wandb: str | None


def train(config: Config, console: Console) -> Outcome:
    """The whole life of a run.

    Raises:
        RloptError: the config cannot be run, or a worker failed; nothing is left running.
    """
    objective = make_objective(config)
    load_reward(config.reward.fn)
    run = Path(config.run.dir).resolve()
    resume = _find_resume(config, run)
    folder = find_model(config.model.path, _Bar(console, f"training {config.model.path} (once on this machine)"))
    limit = context_length(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = load_prompts(config.data, config.run.seed, tokenizer, limit - config.rollout.max_new_tokens)
    longest = max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_new_tokens
    if longest > config.learner.token_budget:
        raise RloptError(
            f"learner.token_budget={config.learner.token_budget}: a sequence can have {longest} tokens; set it to at least that"
        )
    dealer = Dealer(prompts, config.data.prompts_per_step, config.run.seed)
    schedule = Schedule(config.sync.interval, config.sync.offset)
    state = _prepare_run(config, run, resume)
    console.print(describe(config, schedule, len(prompts), longest), highlight=False, soft_wrap=True)

    position = Position(**state["position"]) if resume else Position()
    buffer = checkpoint.load_buffer(resume) if resume else {}
    started = time.monotonic()
    cluster = Cluster(config.cluster)
    rollout_workers = learner_workers = journal = None
    code = 1
    try:
        with console.status("starting engines and learners"):
            rollout_workers = _start_rollouts(config, cluster, folder, longest)
            learner_workers = _start_learners(config, cluster, folder, objective)
            waiting = [rollout_workers.start("start", deadline_s=config.cluster.start_deadline_s)]
            meeting = learner_workers.call("address")[0]
            joined = [[meeting]] * len(learner_workers)
            waiting.append(learner_workers.start("start", *joined, deadline_s=config.cluster.start_deadline_s))
            wandb_run = start_wandb(config.tracking, run, state["wandb_id"], config.run.name, config.algo.name, asdict(config))
            for pending in waiting:
                pending.result("start")
            if resume:
                learner_workers.call("load", *[[resume]] * len(learner_workers))
            sync_address = learner_workers.call("address")[0]
            way = [rollout_workers.handles, config.rollout.tensor_parallel, sync_address]
            learner_workers.call("connect", *[way] * len(learner_workers))
        rollouts, learners = Rollouts(rollout_workers), Learners(learner_workers, config.learner.token_budget)
        rollouts.restore(buffer)
        console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
        journal = Journal(run, position.step, config.trainer.total_steps, config.trainer.log_samples, wandb_run, console)
        journal.event("start", step=position.step, resumed_from=str(resume) if resume else None)

        def save(at: Position, pending: dict[int, list[Group]]) -> None:
            began = time.monotonic()
            kept = {"position": asdict(at), "wandb_id": state["wandb_id"]}

            def write_model(to: Path) -> None:
                learners.save(to)
                tokenizer.save_pretrained(to / "hf")

            path = checkpoint.save(run, at.step, kept, pending, write_model, config.trainer.keep_checkpoints)
            journal.event("checkpoint", step=at.step, path=str(path), seconds=time.monotonic() - began)

        Loop(
            plan=Plan(
                config.trainer.total_steps,
                config.trainer.save_every,
                config.samples_per_step,
                config.sync.verify,
                config.sync.tolerance * (1 if _dtype(config) == torch.float32 else 50),
            ),
            schedule=schedule,
            objective=objective,
            deal=dealer.batch,
            canaries=prompts[:CANARIES],
            rollouts=rollouts,
            learners=learners,
            journal=journal,
            save=save,
        ).run(position, max([position.step, *buffer]))
        code = 0
        wandb_dir = str(Path(wandb_run.dir).parent) if wandb_run else None
        rewards = read_column(run, "reward/mean")
        span = min(20, len(rewards))
        before, after = sum(rewards[:span]) / span, sum(rewards[-span:]) / span
        return Outcome(run, checkpoint.find_all(run)[-1], before, after, span, wandb_dir)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave workers behind
            signal.signal(number, signal.SIG_IGN)
        if journal:
            journal.close(code)
        for workers in (rollout_workers, learner_workers):
            if workers:
                workers.close()
        cluster.close()


def make_objective(config: Config) -> Objective:
    """The objective that `algo.objective` names, from its keys."""
    module, _, name = config.algo.objective.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RloptError(f"algo.objective={config.algo.objective}: cannot be imported ({error}); want module:Class") from error
    return read(kind, config.algo.options, "algo.")  # type: ignore[no-any-return]


def describe(config: Config, schedule: Schedule, prompts: int, longest: int) -> str:
    """What follows from the config, in a few lines."""
    samples = config.samples_per_step
    epochs = config.trainer.total_steps * config.data.prompts_per_step / prompts
    return (
        f"{config.run.name}: {config.algo.name} on {config.model.path}, {config.trainer.total_steps} steps, "
        f"{config.data.prompts_per_step} prompts x {config.algo.group_size} = {samples} samples a step, "
        f"at most {samples * config.rollout.max_new_tokens} response tokens\n"
        f"{prompts} prompts, {epochs:.1f} epochs; longest sequence {longest} tokens; "
        f"sync every {schedule.interval} steps by {config.sync_backend}, worst lag {schedule.worst_lag}\n"
        f"{config.rollout.engines} engine(s), {config.learner.workers} learner rank(s), ZeRO {config.learner.zero_stage}; "
        f"run folder {config.run.dir}"
    )


def _dtype(config: Config) -> torch.dtype:
    if config.model.dtype == "auto":
        return torch.bfloat16 if config.cluster.gpus_per_learner else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.model.dtype]


def _environment(config: Config) -> dict[str, str]:
    """What every worker's environment has: no telemetry, threads, and on a cluster of our own nothing beyond loopback."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(config.cluster.cpu_threads),
    }
    if config.cluster.address == "local":
        env |= {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    return env


def _start_rollouts(config: Config, cluster: Cluster, folder: Path, longest: int) -> Any:
    engine = EngineConfig(
        folder=folder,
        dtype=str(_dtype(config)).removeprefix("torch."),
        device="cuda" if config.cluster.gpus_per_engine else "cpu",
        backend=config.sync_backend,
        max_model_len=longest,
        threads=config.cluster.cpu_threads,
        seed=config.run.seed,
    )
    arguments = [engine, config.rollout, config.reward, config.algo.group_size]
    gpus = config.cluster.gpus_per_engine * config.rollout.tensor_parallel
    env = _environment(config)
    count = config.rollout.engines
    return cluster.workers("engine", RolloutWorker, count, gpus, env, *[arguments] * count)


def _start_learners(config: Config, cluster: Cluster, folder: Path, objective: Objective) -> Any:
    setup = LearnerSetup(
        folder=folder,
        dtype=_dtype(config),
        device="cuda" if config.cluster.gpus_per_learner else "cpu",
        threads=config.cluster.cpu_threads,
        temperature=config.rollout.temperature,
        objective=objective,
        terms=Terms(config.algo.kl.coef, config.algo.kl.estimator, config.algo.entropy_coef),
        sync_backend=config.sync_backend,
        bucket_bytes=config.sync.bucket_mib * 2**20,
        deadline_s=config.cluster.step_deadline_s,
        seed=config.run.seed,
    )
    world = config.learner.workers
    arguments = [[setup, config.learner, rank, world] for rank in range(world)]
    env = _environment(config)
    if not config.cluster.gpus_per_learner:
        env["DS_ACCELERATOR"] = "cpu"
    return cluster.workers("learner", LearnerWorker, world, config.cluster.gpus_per_learner, env, *arguments)


def _find_resume(config: Config, run: Path) -> Path | None:
    """The checkpoint to go on from, or None to begin."""
    resume = config.run.resume
    found = checkpoint.find_all(run)
    if resume == "never":
        if (run / "config.yaml").exists():
            raise RloptError(f"run.resume=never: {run} holds a run already; choose another run.dir, or run.resume=auto")
        return None
    folder = found[-1] if resume == "auto" and found else None
    if resume != "auto":
        folder = Path(resume).resolve()
    if folder:
        checkpoint.verify(folder)
        step = checkpoint.load_state(folder)["position"]["step"]
        if step >= config.trainer.total_steps:
            raise RloptError(
                f"trainer.total_steps={config.trainer.total_steps}: {folder} has made {step} steps already; "
                "raise it, or choose another run.dir"
            )
    return folder


def _prepare_run(config: Config, run: Path, resume: Path | None) -> dict[str, Any]:
    """Make the run's folder, or check that what stands there is this run; the state to begin with."""
    mine = json.loads(json.dumps(asdict(config)))
    kept = run / "config.yaml"
    if kept.exists():
        theirs = yaml.safe_load(kept.read_text())
        differs = [
            f"{section}.{key}={mine[section].get(key)} (there: {theirs.get(section, {}).get(key)})"
            for section in mine
            if section not in MAY_CHANGE
            for key in sorted({*mine[section], *theirs.get(section, {})})
            if mine[section].get(key) != theirs.get(section, {}).get(key)
        ]
        if differs:
            raise RloptError(
                f"run.dir={run}: holds another run, {'; '.join(differs[:3])}; choose another run.dir, or its values"
            )
    run.mkdir(parents=True, exist_ok=True)
    kept.write_text(yaml.safe_dump(mine, sort_keys=False))
    if resume:
        return checkpoint.load_state(resume)
    return {"wandb_id": f"{re.sub(r'[^A-Za-z0-9_-]', '-', config.run.name)}-{uuid.uuid4().hex[:8]}"}


class _Bar:
    """A progress bar for the training of a base model; shown only when there is any."""

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)
        self._title = title
        self._task: TaskID | None = None

    def __call__(self, step: int, steps: int, loss: float) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=steps)
        self._progress.update(self._task, completed=step, description=f"{self._title}, loss {loss:.3f}")
        if step == steps:
            self._progress.stop()
