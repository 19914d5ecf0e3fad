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
from rlopt.cluster import Cluster, Workers
from rlopt.config import Config
from rlopt.data import Dealer, load_prompts
from rlopt.errors import RloptError
from rlopt.learner import Learners, LearnerSetup, LearnerWorker
from rlopt.loop import Loop, Plan, Position
from rlopt.model import context_length, find_model, parameters
from rlopt.objectives.core import Objective, Terms
from rlopt.rewards import load as load_reward
from rlopt.rollout import EngineConfig, Rollouts, RolloutWorker
from rlopt.schedule import Schedule
from rlopt.settings import read
from rlopt.tracking import Journal, read_column, start_wandb
from rlopt.types import Group, Prompt

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


@dataclass(frozen=True)
class Prepared:
    """A run before any process of its own: everything that can be refused has been looked at."""

    config: Config
    objective: Objective
    run: Path
    resume: Path | None
    state: dict[str, Any]
    folder: Path
    tokenizer: Any
    prompts: list[Prompt]
    longest: int

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.config.sync.interval, self.config.sync.offset)


def train(config: Config, console: Console) -> Outcome:
    """The whole life of a run.

    Raises:
        RloptError: the config cannot be run, or a worker failed; nothing is left running.
    """
    prepared = prepare(config, console)
    console.print(describe(prepared), highlight=False, soft_wrap=True)
    started, finished = time.monotonic(), False
    crew = Crew(prepared)
    journal = None
    try:
        with console.status("starting engines and learners"):
            crew.start()
            wandb_run = start_wandb(
                config.tracking, prepared.run, prepared.state["wandb_id"], config.run.name, config.algo.name, asdict(config)
            )
            crew.join()
        console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
        position = Position(**prepared.state["position"])
        journal = Journal(
            prepared.run, position.step, config.trainer.total_steps, config.trainer.log_samples, wandb_run, console
        )
        journal.event("start", step=position.step, resumed_from=str(prepared.resume) if prepared.resume else None)
        _loop(prepared, crew, journal).run(position, max([position.step, *crew.restored]))
        finished = True
        return _outcome(prepared, wandb_run)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave workers behind
            signal.signal(number, signal.SIG_IGN)
        if journal:
            journal.close(exit_code=0 if finished else 1)
        crew.close()


def prepare(config: Config, console: Console) -> Prepared:
    """Check what the typed config could not: files, models, lengths, and what stands in the run's folder."""
    objective = make_objective(config)
    load_reward(config.reward.fn)
    run = Path(config.run.dir).resolve()
    resume = _find_resume(config, run)
    folder = find_model(config.model.path, _Bar(console, f"training {config.model.path} (once on this machine)"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    room = context_length(folder) - config.rollout.max_new_tokens
    prompts = load_prompts(config.data, config.run.seed, tokenizer, room)
    longest = max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_new_tokens
    if longest > config.learner.token_budget:
        raise RloptError(
            f"learner.token_budget={config.learner.token_budget}: a sequence can have {longest} tokens; set it to at least that"
        )
    state = _prepare_run(config, run, resume)
    return Prepared(config, objective, run, resume, state, folder, tokenizer, prompts, longest)


class Crew:
    """The cluster and all workers of a run."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._workers: list[Workers] = []
        self._cluster = Cluster(prepared.config.cluster)
        self.restored: dict[int, list[Group]] = {}

    def start(self) -> None:
        """Begin to load engines and learners, side by side; `join` waits for them."""
        config, deadline = self._prepared.config, self._prepared.config.cluster.start_deadline_s
        self._engines = _start_rollouts(self._prepared, self._cluster)
        self._workers.append(self._engines)
        self._ranks = _start_learners(self._prepared, self._cluster)
        self._workers.append(self._ranks)
        self._starting = [self._engines.start("start", deadline_s=deadline)]
        meeting = self._ranks.call("address")[0]
        self._starting.append(self._ranks.start("start", *[[meeting]] * config.learner.workers, deadline_s=deadline))

    def join(self) -> None:
        """Wait until all are there, bring back a checkpoint, and open the way from learners to engines."""
        config, resume = self._prepared.config, self._prepared.resume
        for pending in self._starting:
            pending.result("starting up")
        self.rollouts = Rollouts(self._engines)
        self.learners = Learners(self._ranks, config.learner.token_budget)
        if resume:
            self.learners.load(resume)
            self.restored = checkpoint.load_buffer(resume)
            self.rollouts.restore(self.restored)
        way = [self._engines.handles, config.rollout.tensor_parallel, self._ranks.call("address")[0]]
        self._ranks.call("connect", *[way] * config.learner.workers)

    def close(self) -> None:
        for workers in self._workers:
            workers.close()
        self._cluster.close()


def _loop(prepared: Prepared, crew: Crew, journal: Journal) -> Loop:
    config, run, state = prepared.config, prepared.run, prepared.state

    def write_model(folder: Path) -> None:
        crew.learners.save(folder)
        prepared.tokenizer.save_pretrained(folder / "hf")

    def save(position: Position, buffer: dict[int, list[Group]]) -> None:
        began = time.monotonic()
        kept = {"position": asdict(position), "wandb_id": state["wandb_id"]}
        path = checkpoint.save(run, position.step, kept, buffer, write_model, config.trainer.keep_checkpoints)
        journal.event("checkpoint", step=position.step, path=str(path), seconds=time.monotonic() - began)

    slack = 1 if _dtype(config) == torch.float32 else 50  # bfloat16 rounds this much coarser
    return Loop(
        plan=Plan(
            total_steps=config.trainer.total_steps,
            save_every=config.trainer.save_every,
            samples_per_step=config.samples_per_step,
            verify=config.sync.verify,
            tolerance=config.sync.tolerance * slack,
        ),
        schedule=prepared.schedule,
        objective=prepared.objective,
        deal=Dealer(prepared.prompts, config.data.prompts_per_step, config.run.seed).batch,
        canaries=prepared.prompts[:CANARIES],
        rollouts=crew.rollouts,
        learners=crew.learners,
        journal=journal,
        save=save,
    )


def _outcome(prepared: Prepared, wandb_run: Any) -> Outcome:
    rewards = read_column(prepared.run, "reward/mean")
    span = min(20, len(rewards))
    return Outcome(
        folder=prepared.run,
        checkpoint=checkpoint.find_all(prepared.run)[-1],
        before=sum(rewards[:span]) / span,
        after=sum(rewards[-span:]) / span,
        span=span,
        wandb=str(Path(wandb_run.dir).parent) if wandb_run else None,
    )


def make_objective(config: Config) -> Objective:
    """The objective that `algo.objective` names, from its keys."""
    module, _, name = config.algo.objective.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RloptError(f"algo.objective={config.algo.objective}: cannot be imported ({error}); want module:Class") from error
    return read(kind, config.algo.options, "algo.")  # type: ignore[no-any-return]


def describe(prepared: Prepared) -> str:
    """What follows from the config, in a few lines."""
    config, schedule = prepared.config, prepared.schedule
    samples, count = config.samples_per_step, len(prepared.prompts)
    epochs = config.trainer.total_steps * config.data.prompts_per_step / count
    weights, width = parameters(prepared.folder), _dtype(config).itemsize
    # Policy, gradient and Adam's two moments (and a float32 master under bfloat16); ZeRO n shares the last n of them.
    parts = [weights * width, weights * width, weights * (8 if width == 4 else 12)]
    stage, ranks = config.learner.zero_stage, config.learner.workers
    learner = weights * width + sum(part / (ranks if stage >= 3 - i else 1) for i, part in enumerate(parts))
    engine = f"{weights * width / 2**20:.1f} MiB of weights"
    if not config.cluster.gpus_per_engine:
        engine += f" and {config.rollout.kv_cache_gib * 1024:.0f} MiB of KV cache"
    return (
        f"{config.run.name}: {config.algo.name} on {config.model.path} ({weights:,} parameters), "
        f"{config.trainer.total_steps} steps\n"
        f"a step   {config.data.prompts_per_step} prompts x {config.algo.group_size} = {samples} samples, "
        f"at most {samples * config.rollout.max_new_tokens} response tokens; longest sequence {prepared.longest}\n"
        f"data     {count} prompts, {epochs:.1f} epochs\n"
        f"sync     every {schedule.interval} updates by {config.sync_backend}, worst lag {schedule.worst_lag}\n"
        f"workers  {config.rollout.engines} engine(s) with {engine}; {ranks} learner rank(s), ZeRO {stage}, "
        f"{learner / 2**20:.1f} MiB of weights, gradients and optimizer before activations\n"
        f"folder   {config.run.dir}"
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


def _start_rollouts(prepared: Prepared, cluster: Cluster) -> Workers:
    config = prepared.config
    engine = EngineConfig(
        folder=prepared.folder,
        dtype=str(_dtype(config)).removeprefix("torch."),
        device="cuda" if config.cluster.gpus_per_engine else "cpu",
        backend=config.sync_backend,
        max_model_len=prepared.longest,
        threads=config.cluster.cpu_threads,
        seed=config.run.seed,
    )
    arguments = [engine, config.rollout, config.reward, config.algo.group_size]
    gpus = config.cluster.gpus_per_engine * config.rollout.tensor_parallel
    env = _environment(config)
    return cluster.workers("engine", RolloutWorker, gpus, env, *[arguments] * config.rollout.engines)


def _start_learners(prepared: Prepared, cluster: Cluster) -> Workers:
    config = prepared.config
    setup = LearnerSetup(
        folder=prepared.folder,
        dtype=_dtype(config),
        device="cuda" if config.cluster.gpus_per_learner else "cpu",
        threads=config.cluster.cpu_threads,
        temperature=config.rollout.temperature,
        objective=prepared.objective,
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
    return cluster.workers("learner", LearnerWorker, config.cluster.gpus_per_learner, env, *arguments)


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
    return {
        "position": asdict(Position()),
        "wandb_id": f"{re.sub(r'[^A-Za-z0-9_-]', '-', config.run.name)}-{uuid.uuid4().hex[:8]}",
    }


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
