"""Starts what `prepare` found good, runs the loop, and takes everything down again."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlopt import checkpoint
from rlopt.cluster import Cluster, Workers, environment, undisturbed
from rlopt.config import Config
from rlopt.data import Dealer
from rlopt.learner import Learners, LearnerSetup, LearnerWorker
from rlopt.live import Live, LivePlan
from rlopt.loop import Loop, Plan, Position, Source
from rlopt.prepare import Prepared, Recordings, describe, dtype, prepare
from rlopt.recorded import Recorded, References
from rlopt.rollout import EngineConfig, Rollouts, make_engines
from rlopt.tracking import Journal, read_column, start_wandb
from rlopt.types import Group, Prompt

CANARIES = 4
"""Prompts that engine and learner both score after a sync: enough to touch every weight, few enough to cost nothing."""

HEADLINES = {"reward/mean": "training reward", "preference/margin": "preference margin", "actor/pg_loss": "loss"}
"""The one number that a finished run is told by: the first of these that it has."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run can say of itself: the mean of its headline over its first and last `span` steps, and its files."""

    folder: Path
    checkpoint: Path
    headline: str
    before: float
    after: float
    span: int
    wandb: str | None


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
        if isinstance(prepared.data, Recordings):
            journal.event("rows_left_out", **prepared.data.dropped)
        _loop(prepared, crew, journal).run(position)
        finished = True
        return _outcome(prepared, wandb_run)
    finally:
        with undisturbed():
            if journal:
                journal.close(exit_code=0 if finished else 1)
            crew.close()


class Crew:
    """The cluster and all workers of a run: learner ranks, and engines where there is something to sample."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._workers: list[Workers] = []
        self._cluster = Cluster(prepared.config.cluster)
        self.restored: dict[int, list[Group]] = {}

    def start(self) -> None:
        """Begin to load engines and learners, side by side; `join` waits for them."""
        config, deadline = self._prepared.config, self._prepared.config.cluster.start_deadline_s
        self._starting = []
        if not isinstance(self._prepared.data, Recordings):
            self._engines = _start_rollouts(self._prepared, self._cluster)
            self._workers.append(self._engines)
            self._starting.append(self._engines.start("start", deadline_s=deadline))
        self._ranks = _start_learners(self._prepared, self._cluster)
        self._workers.append(self._ranks)
        meeting = self._ranks.call("address")[0]
        self._starting.append(self._ranks.start("start", *[[meeting]] * config.learner.workers, deadline_s=deadline))

    def join(self) -> None:
        """Wait until all are there, bring back a checkpoint, and open the way from learners to engines."""
        config, resume = self._prepared.config, self._prepared.resume
        for pending in self._starting:
            pending.result("starting up")
        together = self._prepared.objective.traits.unit == "group"
        self.learners = Learners(self._ranks, config.learner.token_budget, together)
        if resume:
            self.learners.load(resume)
        if isinstance(self._prepared.data, Recordings):
            return
        self.rollouts = Rollouts(self._engines)
        if resume:
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
    shared = config.algo.group_relative

    def write_model(folder: Path) -> None:
        crew.learners.save(folder)
        prepared.tokenizer.save_pretrained(folder / "hf")

    def save(position: Position, buffer: dict[int, list[Group]]) -> None:
        began = time.monotonic()
        kept = {"position": asdict(position), "wandb_id": state["wandb_id"]}
        path = checkpoint.save(run, position.step, kept, buffer, write_model, config.trainer.keep_checkpoints)
        journal.event("checkpoint", step=position.step, path=str(path), seconds=time.monotonic() - began)

    return Loop(
        plan=Plan(
            total_steps=config.trainer.total_steps,
            save_every=config.trainer.save_every,
            anchor=shared.anchor if shared else "behavior",
            minibatches=shared.minibatches if shared else 1,
        ),
        objective=prepared.objective,
        terms=prepared.terms,
        source=_source(prepared, crew, journal),
        learners=crew.learners,
        journal=journal,
        save=save,
    )


def _source(prepared: Prepared, crew: Crew, journal: Journal) -> Source:
    config, data, steps = prepared.config, prepared.data, prepared.config.trainer.total_steps
    count = len(data.train if isinstance(data, Recordings) else data)
    dealer = Dealer(count, config.data.prompts_per_step, config.run.seed)
    if isinstance(data, Recordings):
        return Recorded(
            examples=data.train,
            held_out=data.held_out,
            dealer=dealer,
            references=References(crew.learners, lambda n, of: journal.say(f"initial model scores row {n} of {of}")),
            learners=crew.learners,
            objective=prepared.objective,
            terms=prepared.terms,
            eval_every=config.trainer.eval_every,
            total_steps=steps,
        )
    prompts: list[Prompt] = data
    refills = config.algo.group_relative.refills if config.algo.group_relative else 0
    slack = 1 if dtype(config) == torch.float32 else 50  # bfloat16 rounds this much coarser
    return Live(
        plan=LivePlan(steps, config.samples_per_step, config.sync.verify, config.sync.tolerance * slack),
        schedule=prepared.schedule,
        deal=lambda batch: dealer.deals(batch, prompts, refills),
        canaries=prompts[:CANARIES],
        rollouts=crew.rollouts,
        learners=crew.learners,
        journal=journal,
        requested=max([prepared.state["position"]["step"], *crew.restored]),
    )


def _outcome(prepared: Prepared, wandb_run: Any) -> Outcome:
    columns = ((name, read_column(prepared.run, name)) for name in HEADLINES)
    name, values = next((name, values) for name, values in columns if not math.isnan(values[0]))
    span = min(20, len(values))
    return Outcome(
        folder=prepared.run,
        checkpoint=checkpoint.find_all(prepared.run)[-1],
        headline=HEADLINES[name],
        before=sum(values[:span]) / span,
        after=sum(values[-span:]) / span,
        span=span,
        wandb=str(Path(wandb_run.dir).parent) if wandb_run else None,
    )


def _start_rollouts(prepared: Prepared, cluster: Cluster) -> Workers:
    config = prepared.config
    engine = EngineConfig(
        folder=prepared.folder,
        dtype=str(dtype(config)).removeprefix("torch."),
        device="cuda" if config.cluster.gpus_per_engine else "cpu",
        backend=config.sync_backend,
        max_model_len=prepared.longest,
        threads=config.cluster.cpu_threads,
        seed=config.run.seed,
    )
    return make_engines(cluster, config.cluster, engine, config.rollout, config.reward, config.group_size)


def _start_learners(prepared: Prepared, cluster: Cluster) -> Workers:
    config = prepared.config
    setup = LearnerSetup(
        folder=prepared.folder,
        dtype=dtype(config),
        device="cuda" if config.cluster.gpus_per_learner else "cpu",
        threads=config.cluster.cpu_threads,
        temperature=config.rollout.temperature,
        total_steps=config.trainer.total_steps,
        objective=prepared.objective,
        terms=prepared.terms,
        sync_backend=config.sync_backend,
        bucket_bytes=config.sync.bucket_mib * 2**20,
        deadline_s=config.cluster.step_deadline_s,
        seed=config.run.seed,
    )
    world = config.learner.workers
    arguments = [[setup, config.learner, rank, world] for rank in range(world)]
    env = environment(config.cluster)
    if not config.cluster.gpus_per_learner:
        env["DS_ACCELERATOR"] = "cpu"
    return cluster.workers("learner", LearnerWorker, config.cluster.gpus_per_learner, env, *arguments)
