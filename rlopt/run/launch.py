"""Starts a validated run, runs the loop, restarts it where it lost something, and closes everything again."""

import math
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from rlopt.cluster.actors import ClusterLost, Lost, Stalled
from rlopt.config.schema import Config
from rlopt.core.errors import RloptError, StoppedEarly, first_line
from rlopt.core.garbage import give_back
from rlopt.core.signals import told_to_end, undisturbed
from rlopt.core.supervisor import Events, Loss, Supervisor
from rlopt.data.rollout_log import Recorder
from rlopt.orchestrator.progress import Position
from rlopt.run import checkpoint
from rlopt.run.failure import explained
from rlopt.run.lock import held
from rlopt.run.saving import check_room
from rlopt.run.summary import summarize
from rlopt.run.validate import Prepared, again, validate
from rlopt.run.wiring import make_loop
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal
from rlopt.tracking.loggers import Logger, Wandb, start_loggers
from rlopt.tracking.run_folder import read_column

HEADLINES = {"reward/mean": "training reward", "preference/margin": "preference margin", "actor/pg_loss": "loss"}
"""The metric that a finished run prints: the first of these that it has."""


@dataclass(frozen=True)
class Outcome:
    """The result of a finished run: the mean of its headline over the first and last `span` steps, and its files."""

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
    run = Path(config.run.dir).resolve()
    with held(run):
        try:
            return kept(_train(config, console))
        except OSError as error:  # before the run has anything to lose: its folder is full
            raise explained(error, run) from error


def kept(outcome: Outcome) -> Outcome:
    """The outcome, if what the run made is still there.

    Raises:
        RloptError: somebody removed it while the run was ending.
    """
    if not outcome.checkpoint.is_dir():
        raise RloptError(
            f"run.dir={outcome.folder}: was removed while the run was ending, and what it made is gone; run it again"
        )
    return outcome


def _train(config: Config, console: Console) -> Outcome:
    prepared = validate(config, console)
    # The driver's tensors are small. With a thread per core the other threads would spin between two operations, and on a
    # machine of many cores use more CPU than the driver itself.
    torch.set_num_threads(1)
    console.print(summarize(prepared), highlight=False, soft_wrap=True)
    check_room(prepared.config, prepared.model.shape, prepared.model.dtype.itemsize, prepared.start.run)
    trainer, events = config.trainer, Events()
    supervisor = Supervisor(config.rollout.engines, trainer.restarts, config.waits_for_room, events)
    while True:
        try:
            return _attempt(prepared, supervisor, events, console)
        except _Restart as lost:
            prepared = again(prepared)
            give_back()
            step = prepared.start.state["position"]["step"]
            console.print(f"{lost}; restarting from step {step}", highlight=False, markup=False, soft_wrap=True)


class _Restart(Exception):
    """A part of the run was lost, and the supervisor says to go on from the last checkpoint."""


def _attempt(prepared: Prepared, supervisor: Supervisor, events: Events, console: Console) -> Outcome:
    """Start the workers and run the loop to its end.

    Raises:
        _Restart: it lost something that another attempt may have.
    """
    config, start = prepared.config, prepared.start
    started, finished, stop = time.monotonic(), False, threading.Event()
    workers, journal = None, None
    try:
        workers = RunWorkers(prepared, supervisor)
        with console.status("starting engines and learners"):
            workers.start()
            position, about = Position(**start.state["position"]), (config.run.name, config.algo.name, asdict(config))
            loggers = start_loggers(config.tracking, start.run, position.step, start.state["wandb_id"], *about)
            workers.join()
        console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
        checkpoint.forget(start.run, position.step, start.damaged)
        recorder = _recorder(prepared, position.step)
        steps, log_samples = config.trainer.total_steps, config.trainer.log_samples
        row = None if start.origin else start.state.get("row")
        journal = Journal(start.run, position.step, steps, log_samples, loggers, console, recorder, row, config.waits_for_room)
        events.to(journal.event)
        _tell(prepared, workers, journal)
        if workers.engines:
            workers.engines.asked_to_stop = stop.is_set
        with told_to_end(stop.set):
            make_loop(prepared, workers, journal, supervisor, stop.is_set).run(position)
        finished = True
        return _outcome(prepared, loggers)
    except StoppedEarly:
        raise
    except (Stalled, ClusterLost) as lost:
        if stop.is_set():  # whoever asked the run to end has ended its workers too
            raise StoppedEarly from lost
        loss = loss_of(lost)
        if loss and supervisor.lost(loss) == "restart":
            raise _Restart(first_line(lost)) from lost
        raise explained(lost, start.run) from lost
    except Exception as error:
        raise explained(error, start.run) from error
    finally:
        with undisturbed():
            try:
                if workers:
                    workers.close()  # first: finishing an upload may take long
            finally:
                events.keep()
                if journal:
                    journal.close(exit_code=0 if finished else 1)


def _tell(prepared: Prepared, workers: RunWorkers, journal: Journal) -> None:
    """Write down how the run begins."""
    start, data = prepared.start, prepared.data
    step = start.state["position"]["step"]
    journal.event("start", step=step, resumed_from=str(start.resume) if start.resume else None)
    for folder, why in start.damaged.items():
        journal.event("checkpoint_damaged", path=str(folder), why=why)
    if start.left_behind:
        journal.event("samples_left_behind", why=start.left_behind)
    journal.event("workers", **workers.nodes())
    if data.recordings:
        journal.event("rows_left_out", **data.recordings.dropped)
    if data.left_out:
        journal.event("rows_left_out", **data.left_out)
    if data.notes:
        journal.event("rows_noted", **data.notes)
    if data.experience:
        journal.event("experience", damage=data.experience.damage, left_out=data.experience.dropped)


def loss_of(lost: Stalled | ClusterLost) -> Loss | None:
    """What the supervisor is told of; None if restarting cannot help: Ray or engines do not get ready in time."""
    if isinstance(lost, ClusterLost):
        return Loss("cluster", "Ray", first_line(lost), 0.0)
    if isinstance(lost, Lost) and lost.who != "learner":
        return Loss("start", lost.who, first_line(lost), lost.waited_s)
    if lost.who != "learner":
        return None
    return Loss("learner", lost.who, first_line(lost), lost.waited_s, stalled=not isinstance(lost, Lost))


def _recorder(prepared: Prepared, step: int) -> Recorder | None:
    if not prepared.config.run.record:
        return None
    waits = prepared.config.waits_for_room
    return Recorder(prepared.start.run, step, prepared.about, logprobs_known=prepared.terms.off_policy, waits=waits)


def _outcome(prepared: Prepared, loggers: list[Logger]) -> Outcome:
    columns = ((name, read_column(prepared.start.run, name)) for name in HEADLINES)
    name, values = next((name, values) for name, values in columns if not math.isnan(values[0]))
    span = min(20, len(values))
    return Outcome(
        folder=prepared.start.run,
        checkpoint=checkpoint.find_all(prepared.start.run)[-1],
        headline=HEADLINES[name],
        before=sum(values[:span]) / span,
        after=sum(values[-span:]) / span,
        span=span,
        wandb=next((str(logger.folder) for logger in loggers if isinstance(logger, Wandb)), None),
    )
