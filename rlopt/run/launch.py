"""Starts a validated run, runs the loop, and closes everything again."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from rlopt.config.schema import Config
from rlopt.core.errors import StoppedEarly
from rlopt.core.signals import told_to_end, undisturbed
from rlopt.data.rollout_log import Recorder
from rlopt.orchestrator.progress import Position
from rlopt.run import checkpoint
from rlopt.run.failure import explained
from rlopt.run.lock import held
from rlopt.run.summary import summarize
from rlopt.run.validate import Prepared, validate
from rlopt.run.wiring import make_loop
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal, read_column
from rlopt.tracking.loggers import Logger, Wandb, start_loggers

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
            return _train(config, console)
        except OSError as error:  # before the run has anything to lose: its folder is full
            raise explained(error, run) from error


def _train(config: Config, console: Console) -> Outcome:
    prepared = validate(config, console)
    # The driver's tensors are small. With a thread per core the other threads would spin between two operations, and on a
    # machine of many cores use more CPU than the driver itself.
    torch.set_num_threads(1)
    console.print(summarize(prepared), highlight=False, soft_wrap=True)
    started, finished = time.monotonic(), False
    workers = RunWorkers(prepared)
    journal = None
    try:
        with console.status("starting engines and learners"):
            workers.start()
            position, about = Position(**prepared.start.state["position"]), (config.run.name, config.algo.name, asdict(config))
            loggers = start_loggers(
                config.tracking, prepared.start.run, position.step, prepared.start.state["wandb_id"], *about
            )
            workers.join()
        console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
        checkpoint.forget(prepared.start.run, position.step, prepared.start.damaged)
        recorder = _recorder(prepared, position.step)
        steps, log_samples = config.trainer.total_steps, config.trainer.log_samples
        row = None if prepared.start.origin else prepared.start.state.get("row")
        journal = Journal(prepared.start.run, position.step, steps, log_samples, loggers, console, recorder, row)
        journal.event("start", step=position.step, resumed_from=str(prepared.start.resume) if prepared.start.resume else None)
        for folder, why in prepared.start.damaged.items():
            journal.event("checkpoint_damaged", path=str(folder), why=why)
        if prepared.start.left_behind:
            journal.event("samples_left_behind", why=prepared.start.left_behind)
        journal.event("workers", **workers.nodes())
        if prepared.data.recordings:
            journal.event("rows_left_out", **prepared.data.recordings.dropped)
        if left_out := prepared.data.left_out:
            journal.event("rows_left_out", **left_out)
        if prepared.data.notes:
            journal.event("rows_noted", **prepared.data.notes)
        if prepared.data.experience:
            journal.event("experience", damage=prepared.data.experience.damage, left_out=prepared.data.experience.dropped)
        if workers.engines:
            workers.engines.report = journal.event
            workers.engines.asked_to_stop = workers.stop.is_set
        with told_to_end(workers.stop.set):
            make_loop(prepared, workers, journal).run(position)
        finished = True
        return _outcome(prepared, loggers)
    except StoppedEarly:
        raise
    except Exception as error:
        raise explained(error, prepared.start.run) from error
    finally:
        with undisturbed():
            try:
                workers.close()  # first: finishing an upload may take long
            finally:
                if journal:
                    journal.close(exit_code=0 if finished else 1)


def _recorder(prepared: Prepared, step: int) -> Recorder | None:
    if not prepared.config.run.record:
        return None
    return Recorder(prepared.start.run, step, prepared.about, logprobs_known=prepared.terms.off_policy)


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
