"""Steps of a run made again from its record, without engines, and compared with what the run wrote down.

A run with `run.record=true` keeps the groups of every step, in the order in which they were learned from. With a checkpoint
they are all that the numbers of the learner depend on, in asynchronous runs too, in which no second run would sample the same.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlopt.config.compose import read
from rlopt.config.schema import Config
from rlopt.core.errors import RloptError, need
from rlopt.core.protocols import Learners
from rlopt.core.samples import Group, PendingRollouts
from rlopt.data.collate import tabulate
from rlopt.data.rollout_log import NAME, Damaged, blocks, group_from_json
from rlopt.orchestrator.loop import StepData
from rlopt.orchestrator.online_source import asked_for
from rlopt.orchestrator.progress import Position
from rlopt.run import checkpoint
from rlopt.run.resume import kept_config, with_new_keys
from rlopt.run.validate import validate
from rlopt.run.wiring import make_loop
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal
from rlopt.tracking.metrics import batch_metrics
from rlopt.tracking.run_folder import steps_of

OTHERS: tuple[str, ...] = ("timing_s/", "perf/", "idle/", "sync/", "eval/", "replay/", "env/seconds")
OTHERS += ("response_length/p90", "response_length/finished", "offpolicy/dropped_groups")
"""Metrics of clocks, of engines, and of what the sampler had beside the groups."""


@dataclass(frozen=True)
class Difference:
    """A metric that is another one now."""

    step: int
    metric: str
    there: object
    here: object


@dataclass(frozen=True)
class Reproduced:
    """The result: which steps were made again, from where, how many metrics were compared, and which differ."""

    first: int
    last: int
    origin: Path
    compared: int
    differences: list[Difference]


@dataclass(frozen=True)
class _Recorded:
    """A `loop.Source` that gives the recorded groups of each step."""

    steps: Iterator[tuple[int, list[Group]]]
    new: int
    group_size: int
    learners: Learners

    def open(self, step: int) -> None: ...

    def take(self, step: int) -> StepData:
        at, groups = next(self.steps, (None, []))
        if at != step:
            raise RloptError(f"{NAME}: has no groups of step {step}; give steps that it has")
        sequences = tabulate(groups, step)
        metrics = batch_metrics(groups, step, asked_for(groups, self.new, self.group_size))
        return StepData(sequences, lambda: self.learners.score_reference(sequences), metrics, groups)

    def learned(self, step: int) -> dict[str, float]:
        return {}

    def measure(self, step: int) -> dict[str, float]:
        return {}

    def pending(self, step: int) -> PendingRollouts:
        return PendingRollouts({}, {})


def config_of(run: Path) -> Config:
    """The config of a run that can be reproduced.

    Raises:
        RloptError: there is none, it kept no record, or another release made it.
    """
    kept = kept_config(run)
    if kept is None:
        raise RloptError(f"{run}: holds no run; give the folder of one")
    kept = with_new_keys(kept)
    if not (run / NAME).is_file():
        raise RloptError(f"{run}: kept no record of what it learned from; set run.record=true in the next one")
    try:
        return read(Config, kept, "")
    except RloptError as error:
        raise RloptError(f"{run}: was made by another release ({error}); use that one") from error


def reproduce(run: Path, config: Config, first: int, last: int | None, console: Console) -> Reproduced:
    """Make the steps from `first` to `last` (None: the last one recorded) again, from the newest checkpoint before them.

    Raises:
        RloptError: a step is not in the record, or no checkpoint is left to begin with.
    """
    written = {row["step"]: row for row in steps_of(run)}
    last = min(last or max(written), max(written))
    need(1 <= first <= last, "--steps", f"{first}:{last}", f"the run made steps 1 to {max(written)}")
    before = [folder for folder in checkpoint.find_all(run) if checkpoint.step_of(folder) < first]
    began_with = config.run.resume if config.run.resume not in ("auto", "never") else None
    start = str(before[-1]) if before else began_with or "never"
    with tempfile.TemporaryDirectory() as folder:
        again = replace(config, run=replace(config.run, dir=f"{folder}/run", resume=start, record=False))
        prepared = validate(again, console)
        prepared = replace(
            prepared,
            config=replace(prepared.config, cluster=replace(config.cluster, cpu_threads=prepared.threads.learner)),
            data=replace(prepared.data, train=None, evals={}, experience=None),  # so that no engine is started
        )
        torch.set_num_threads(1)
        workers = RunWorkers(prepared)
        try:
            with console.status("starting the learner"):
                workers.start()
                workers.join()
            position = Position(**prepared.start.state["position"])
            steps = _recorded(run / NAME, position.step, last)
            journal = Journal(prepared.start.run, position.step, last, 0, [], console, None)
            loop = make_loop(prepared, workers, journal)
            loop = replace(
                loop,
                plan=replace(loop.plan, total_steps=last),
                source=_Recorded(steps, config.shares[0], config.group_size, workers.learners),
                save=lambda *_: True,
            )
            try:
                loop.run(position)
            finally:
                journal.close(exit_code=0)
        finally:
            workers.close()
        made = [row for row in steps_of(prepared.start.run) if row["step"] >= first]
        compared = [one for row in made for one in _compared(written[row["step"]], row)]
    origin = Path(start) if start != "never" else prepared.model.folder
    return Reproduced(first, last, origin, len(compared), [one for one in compared if one.there != one.here])


def _recorded(path: Path, after: int, last: int) -> Iterator[tuple[int, list[Group]]]:
    """The groups of every step, of those after a step."""
    rows = _rows(path)
    next(rows)  # what made them
    for step, groups in groupby((row for row in rows if after < row["step"] <= last), key=lambda row: row["step"]):
        yield step, [group_from_json(row) for row in groups]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for block in blocks(path):
            yield from map(json.loads, block.lines)
    except Damaged as damage:
        raise RloptError(f"{path}: is damaged at byte {damage.offset} ({damage}); give steps before that") from None


def _compared(there: Mapping[str, object], here: Mapping[str, object]) -> Iterator[Difference]:
    """What can be compared of a step."""
    for metric in sorted(there.keys() & here.keys()):
        if metric != "step" and not metric.startswith(OTHERS):
            yield Difference(int(str(here["step"])), metric, there[metric], here[metric])
