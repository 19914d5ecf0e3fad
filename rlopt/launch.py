"""Starts what `prepare` found good, runs the loop, and takes everything down again."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlopt import checkpoint
from rlopt.boards import Board, Wandb, start_boards
from rlopt.cluster import Cluster, Workers, close_all, environment
from rlopt.config import Config
from rlopt.data import Dealer
from rlopt.describe import describe
from rlopt.engines import wanted_engines
from rlopt.evaluation import Evaluator, manners
from rlopt.fleet import Fleet
from rlopt.groups import Evaluation, Groups, Samplers, Shares
from rlopt.learner import Learners, LearnerSetup, LearnerWorker
from rlopt.live import Lockstep, revive, shelved
from rlopt.live import Synchroniser as LiveSync
from rlopt.loop import Loop, Plan, Position, Source
from rlopt.prepare import Prepared, dtype, prepare
from rlopt.record import Recorder
from rlopt.recorded import Recorded, References
from rlopt.replay import Replay, ReplayPlan
from rlopt.rollout import CANARY_PLACES, EngineConfig, spawner
from rlopt.signals import told_to_end, undisturbed
from rlopt.stream import Stream, StreamPlan, streamed
from rlopt.sync import Synchroniser, canary_texts, listen
from rlopt.tracking import Journal, read_column
from rlopt.types import Prompt, Stock

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
    # The driver's tensors are small. With a thread for each core the others would spin between two operations, and on a
    # machine of many cores burn more than all else that the driver does.
    torch.set_num_threads(1)
    console.print(describe(prepared), highlight=False, soft_wrap=True)
    started, finished = time.monotonic(), False
    crew = Crew(prepared)
    journal = None
    try:
        with console.status("starting engines and learners"):
            crew.start()
            position, about = Position(**prepared.state["position"]), (config.run.name, config.algo.name, asdict(config))
            boards = start_boards(config.tracking, prepared.run, position.step, prepared.state["wandb_id"], *about)
            crew.join()
        console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
        checkpoint.forget(prepared.run, position.step)
        recorder = _recorder(prepared, position.step)
        steps, log_samples = config.trainer.total_steps, config.trainer.log_samples
        journal = Journal(prepared.run, position.step, steps, log_samples, boards, console, recorder)
        journal.event("start", step=position.step, resumed_from=str(prepared.resume) if prepared.resume else None)
        if prepared.left_behind:
            journal.event("samples_left_behind", why=prepared.left_behind)
        journal.event("workers", **crew.nodes())
        if prepared.recordings:
            journal.event("rows_left_out", **prepared.recordings.dropped)
        if left_out := prepared.left_out:
            journal.event("rows_left_out", **left_out)
        if prepared.notes:
            journal.event("rows_noted", **prepared.notes)
        if prepared.experience:
            journal.event("experience", damage=prepared.experience.damage, left_out=prepared.experience.dropped)
        if crew.fleet:
            crew.fleet.report = journal.event
            crew.fleet.asked_to_stop = crew.stop.is_set
        with told_to_end(crew.stop.set):
            _loop(prepared, crew, journal).run(position)
        if position.step < steps:
            raise KeyboardInterrupt
        finished = True
        return _outcome(prepared, boards)
    finally:
        with undisturbed():
            try:
                crew.close()  # first: the end of an upload may take long
            finally:
                if journal:
                    journal.close(exit_code=0 if finished else 1)


class Crew:
    """The cluster and all workers of a run: learner ranks, and engines where there is something to sample."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._ranks: Workers | None = None
        self.fleet: Fleet | None = None
        self._cluster = Cluster(prepared.config.cluster)
        self.stock = Stock({}, {})
        self.stop = threading.Event()

    def start(self) -> None:
        """Begin to load engines and learners, side by side; `join` waits for them."""
        config, deadline = self._prepared.config, self._prepared.config.cluster.start_deadline_s
        if self._prepared.prompts:
            self.fleet = Fleet(_spawner(self._prepared, self._cluster), config.rollout.engines, deadline)
        self._ranks = _start_learners(self._prepared, self._cluster)
        meeting = self._ranks.call("address")[0]
        self._starting = self._ranks.start("start", *[[meeting]] * config.learner.workers, deadline_s=deadline)

    def join(self) -> None:
        """Wait until all are there, and bring back a checkpoint."""
        config = self._prepared.config
        assert self._ranks
        if self.fleet:
            self.fleet.join(wait=True)
        self._starting.result("starting up")
        together = self._prepared.objective.traits.unit == "group"
        self.learners = Learners(self._ranks, config.learner.token_budget, together, config.rollout.temperature)
        self.learners.check_storage(self._prepared.run)
        self.bring_back(self._prepared)

    def bring_back(self, prepared: Prepared) -> None:
        """What the checkpoint holds that `prepared` goes on from, if it does."""
        self.stock = Stock({}, {})
        if not prepared.resume:
            return
        self.learners.load(prepared.resume)
        self.stock = checkpoint.load_stock(prepared.resume)
        if prepared.left_behind:  # go on from the same place in the data, with the weights that are there
            step = prepared.state["position"]["step"]
            stream = {"keys": [], "again": [], "next": step * prepared.config.shares[0]}
            self.stock = Stock({}, {"revived": [step], "stream": stream})

    def nodes(self) -> dict[str, Any]:
        """Which Ray node everybody is on."""
        assert self._ranks
        return {"learners": self._ranks.nodes(), "engines": self.fleet.nodes if self.fleet else {}}

    def close(self) -> None:
        close_all([*(self.fleet.workers if self.fleet else []), *([self._ranks] if self._ranks else [])])
        self._cluster.close()


def _recorder(prepared: Prepared, step: int) -> Recorder | None:
    if not prepared.config.run.record:
        return None
    return Recorder(prepared.run, step, prepared.about, known=prepared.terms.off_policy)


def _loop(prepared: Prepared, crew: Crew, journal: Journal) -> Loop:
    config, run, state = prepared.config, prepared.run, prepared.state
    shared = config.algo.group_relative
    canaries = canary_texts(_some_prompts(prepared), CANARY_PLACES)
    best = checkpoint.Best(run, config.trainer.best, state["position"]["step"])

    def write_model(folder: Path) -> dict[str, int]:
        written = crew.learners.save(folder)
        prepared.tokenizer.save_pretrained(folder / "hf")
        return written

    def save(position: Position, stock: Stock) -> None:
        began = time.monotonic()
        said = [logprobs.tolist() for logprobs in listen(crew.learners, canaries)]
        canary = {"texts": canaries, "logprobs": said}  # by which `rlopt.export` proves itself
        kept = {"position": asdict(position), "wandb_id": state["wandb_id"], "canary": canary}
        path = checkpoint.save(run, position.step, kept, stock, write_model, config.trainer.keep_checkpoints, best)
        facts = {"path": str(path), "seconds": time.monotonic() - began, "sampled_again": len(stock.facts.get("again", []))}
        journal.event("checkpoint", step=position.step, **facts)

    return Loop(
        plan=Plan(
            total_steps=config.trainer.total_steps,
            save_every=config.trainer.save_every,
            record=config.run.record,
            anchor=shared.anchor if shared else "behavior",
            minibatches=shared.minibatches if shared else 1,
        ),
        objective=prepared.objective,
        terms=prepared.terms,
        source=_source(prepared, crew, journal),
        learners=crew.learners,
        journal=journal,
        save=save,
        is_best=best.improved,
        asked_to_stop=crew.stop.is_set,
    )


def _some_prompts(prepared: Prepared) -> list[Prompt]:
    """The first that a run has, wherever from."""
    if prepared.recordings:
        return [example.prompt for example in prepared.recordings.train[:CANARY_PLACES]]
    if not prepared.prompts and prepared.experience:
        return [group.prompt for group in prepared.experience.groups(0, min(CANARY_PLACES, len(prepared.experience)))]
    return prepared.prompts


def _source(prepared: Prepared, crew: Crew, journal: Journal) -> Source:
    config, stock = prepared.config, crew.stock
    if recordings := prepared.recordings:
        return Recorded(
            examples=recordings.train,
            held_out=recordings.held_out,
            dealer=Dealer(len(recordings.train), config.data.prompts_per_step, config.run.seed),
            references=References(crew.learners, lambda n, of: journal.say(f"initial model scores row {n} of {of}")),
            learners=crew.learners,
            objective=prepared.objective,
            terms=prepared.terms,
            eval_every=config.trainer.eval_every,
            total_steps=config.trainer.total_steps,
        )
    replay = None
    if config.replay.capacity:
        kept = config.replay
        replay = Replay(ReplayPlan(kept.capacity, kept.reuse, kept.decay, config.sync.max_lag))
        if "replay" in stock.facts:
            replay.restore(stock)
    samplers = _samplers(prepared, crew, crew.fleet, journal) if crew.fleet and prepared.prompts else None
    evaluation = None
    if crew.fleet and samplers and prepared.evals:
        every, interval, steps = config.trainer.eval_every, config.sync.interval, config.trainer.total_steps
        evaluation = Evaluation(every, interval, steps, _evaluator(prepared, crew.fleet, samplers.sync).measure)
    return Groups(
        shares=Shares(*config.shares, config.group_size),
        samplers=samplers,
        replay=replay,
        recorded=prepared.experience.groups if prepared.experience else None,
        learners=crew.learners,
        evaluation=evaluation,
    )


def _evaluator(prepared: Prepared, fleet: Fleet, sync: LiveSync) -> Evaluator:
    plan = prepared.config.eval
    return Evaluator(
        sets={name: loaded.prompts for name, loaded in prepared.evals.items()},
        manners=manners(plan.samples, plan.temperature, plan.top_p, plan.greedy),
        right=plan.right,
        fleet=fleet,
        deadline_s=prepared.config.cluster.step_deadline_s,
        revive=lambda: revive(fleet, sync, sync.version),
    )


def _samplers(prepared: Prepared, crew: Crew, fleet: Fleet, journal: Journal) -> Samplers:
    config, stock, sync, prompts = prepared.config, crew.stock, prepared.config.sync, prepared.prompts
    new, deadline_s = config.shares[0], config.cluster.step_deadline_s
    refills = config.algo.group_relative.refills if config.algo.group_relative else 0
    dealer = Dealer(len(prompts), new, config.run.seed)
    synchroniser = Synchroniser(
        learners=crew.learners,
        engines=fleet,
        canaries=canary_texts(prompts, CANARY_PLACES),
        verify=sync.verify,
        tolerance=sync.tolerance * _slack(config),
        ranks_per_engine=config.rollout.tensor_parallel,
        journal=journal,
        wanted=lambda: wanted_engines(prepared.run, config.rollout.engines),
    )
    if sync.mode == "lockstep":
        again = [(batch, place) for batch, place in stock.facts.get("again", [])]
        batches = shelved(stock.shelves, again)
        fleet.put_back(batches)
        return Lockstep(
            schedule=prepared.schedule,
            deal=lambda batch: dealer.deals(batch, prompts, refills),
            fleet=fleet,
            sync=synchroniser,
            total_steps=config.trainer.total_steps,
            deadline_s=deadline_s,
            sleep=config.rollout.sleep,
            requested=max([prepared.state["position"]["step"], *(batch for batch, _ in [*batches, *again])]),
            revived=set(stock.facts.get("revived", [])),
            again=again,
        )
    under = streamed(stock)
    fleet.put_back(under.done)
    assert sync.max_lag is not None
    return Stream(
        plan=StreamPlan(
            per_step=new,
            total_steps=config.trainer.total_steps,
            interval=sync.interval,
            max_lag=sync.max_lag,
            stale=sync.stale,
            ahead=2 * max(1, config.rollout.engines * config.rollout.max_num_seqs // config.group_size),
            deadline_s=deadline_s,
        ),
        deal=lambda number: dealer.deals(number // new + 1, prompts, refills)[number % new],
        fleet=fleet,
        sync=synchroniser,
        next=under.next,
        again=under.under_way,
    )


def _slack(config: Config) -> int:
    """What rounding adds to `sync.tolerance`. A weight that did not arrive shows as 1e-2 nats and more."""
    if dtype(config) == torch.float32:
        return 10 if config.cluster.gpus_per_engine else 1  # kernels of GPUs round some products to TF32
    return 500  # a logit near 16 is rounded by 0.06, each side its own way


def _outcome(prepared: Prepared, boards: list[Board]) -> Outcome:
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
        wandb=next((str(board.folder) for board in boards if isinstance(board, Wandb)), None),
    )


def _spawner(prepared: Prepared, cluster: Cluster) -> Callable[[str, int], Workers]:
    config = prepared.config
    engine = EngineConfig(
        folder=prepared.folder,
        dtype=str(dtype(config)).removeprefix("torch."),
        device="cuda" if config.cluster.gpus_per_engine else "cpu",
        backend=config.sync_backend,
        max_model_len=prepared.longest,
        threads=config.cluster.cpu_threads,
        seed=config.run.seed,
        in_flight=config.sync.in_flight if config.sync.mode == "async" else "wait",
        learns=True,
    )
    return spawner(cluster, config.cluster, engine, config.rollout, config.reward, config.group_size)


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
        verify=config.sync.verify,
        deadline_s=config.cluster.step_deadline_s,
        seed=config.run.seed,
    )
    world = config.learner.workers
    arguments = [[setup, config.learner, rank, world] for rank in range(world)]
    env = environment(config.cluster)
    if not config.cluster.gpus_per_learner:
        env["DS_ACCELERATOR"] = "cpu"
    return cluster.workers("learner", LearnerWorker, config.cluster.gpus_per_learner, env, *arguments)
