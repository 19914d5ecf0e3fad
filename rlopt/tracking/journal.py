"""What a run writes: `metrics.jsonl`, `samples.jsonl`, `events.jsonl`, loggers, and the progress bar."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from rlopt.core.appended import AppendedFile
from rlopt.core.atomic_write import write_whole
from rlopt.core.errors import RloptError, first_line
from rlopt.core.samples import Group, as_text
from rlopt.data.rollout_log import Recorder
from rlopt.tracking.loggers import Logger
from rlopt.tracking.metrics import DEFINITIONS

OWN = ("objective/", "reward/part/", "eval/")
"""Prefixes of metrics that the user's code and data name."""

LINE = {
    "reward/mean": ("reward", ".3f"),
    "preference/margin": ("margin", ".3f"),
    "preference/accuracy": ("accuracy", ".2f"),
    "actor/pg_loss": ("loss", ".3f"),
    "actor/kl_k2": ("KL", ".4f"),
    "actor/entropy": ("entropy", ".3f"),
    "response_length/mean": ("length", ".1f"),
    "offpolicy/lag_max": ("lag", ".0f"),
}
"""The metrics that the progress bar shows, where a step has them."""


class Journal:
    """The files of a run, its W&B run and its progress bar. A resumed run's journal drops the steps that are made again."""

    def __init__(
        self,
        run: Path,
        step: int,
        total: int,
        log_samples: int,
        loggers: Sequence[Logger],
        console: Console,
        recorder: Recorder | None,
        row: Mapping[str, object] | None = None,
        waits: bool = False,
    ) -> None:
        """Open the files.

        Args:
            step: the run continues after it; later lines of an interrupted attempt are cut off.
            row: the metrics of that step as the checkpoint has them, in case their line was cut short.
            waits: lines wait for room where the disk is full.
        """
        self._recorder = recorder
        _keep_until(run / "metrics.jsonl", step, row)
        _keep_until(run / "samples.jsonl", step)
        _drop_half_line(run / "events.jsonl")
        self.row = row
        self._files = {name: AppendedFile(run / f"{name}.jsonl", waits) for name in ("metrics", "samples", "events")}
        self._log_samples, self._loggers = log_samples, list(loggers)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._console = console
        self._task = self._progress.add_task("training", total=total, completed=step)
        self._progress.start()

    def step(self, metrics: Mapping[str, float], groups: list[Group], policy: Tensor | None) -> None:
        """Write one learner step; with a recorder also its groups, with the policy's log-probabilities `[B, T]`."""
        own = {name for name in metrics if name.startswith(OWN)}
        unknown = metrics.keys() - DEFINITIONS.keys() - own
        if unknown:
            raise RloptError(f"metrics without a definition: {sorted(unknown)}; an objective's own begin with objective/")
        step = int(metrics["step"])
        ordered = {name: _plain(metrics[name]) for name in [*DEFINITIONS, *sorted(own)] if name in metrics}
        self._write("metrics", ordered)
        self.row = ordered
        for group in groups:
            for fault in group.faults:
                whose, kind = ("environment", fault.kind[4:]) if fault.kind.startswith("env_") else ("reward", fault.kind)
                self.event(f"{whose}_fault", step=step, fault=kind, why=fault.why)
        shown = [_shown(step, group) for group in groups[: self._log_samples] if group.samples]
        for row in shown:
            self._write("samples", row)
        if self._recorder and policy is not None:
            self._recorder.step(step, groups, policy)
        for logger in list(self._loggers):
            self._show(logger, metrics, shown)
        line = "  ".join(f"{label} {metrics[name]:{form}}" for name, (label, form) in LINE.items() if name in metrics)
        self._progress.update(self._task, completed=step, description=line)
        if not self._console.is_terminal and (step % 20 == 0 or step == 1):
            self._console.print(f"step {step}  {line}", highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Show in the progress bar what happens before the first step."""
        self._progress.update(self._task, description=line)

    def event(self, kind: str, **facts: object) -> None:
        """Write an event: a sync, a checkpoint, a fault."""
        self._write("events", {"time": round(time.time(), 3), "event": kind, **{k: _plain(v) for k, v in facts.items()}})

    def close(self, exit_code: int) -> None:
        self._progress.stop()
        for file in self._files.values():
            file.write(b"")  # what waits for room
        for logger in self._loggers:
            try:
                logger.close(exit_code)
            except Exception as error:  # as in _show; the events are closed by now
                self._warn(f"{logger.name} did not close ({first_line(error)})")

    def _show(self, logger: Logger, metrics: Mapping[str, float], samples: list[dict[str, object]]) -> None:
        """Show a step. A logger that fails is opened again once, and then left out: it must not end a run."""
        step = int(metrics["step"])
        try:
            logger.step(metrics, samples)
            return
        except Exception as error:  # whatever the service behind it raises
            why = first_line(error)
        try:
            logger.reopen()
            logger.step(metrics, samples)
            self.event("board_reopened", board=logger.name, step=step, why=why)
        except Exception as error:  # whatever it raises now
            self._loggers.remove(logger)
            why = first_line(error)
            self.event("board_lost", board=logger.name, step=step, why=why)
            self._warn(f"{logger.name} shows nothing from step {step} on ({why}); metrics.jsonl has everything")

    def _warn(self, line: str) -> None:
        self._console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)

    def _write(self, name: str, row: Mapping[str, object]) -> None:
        self._files[name].write(json.dumps(row).encode() + b"\n")


def _shown(step: int, group: Group) -> dict[str, object]:
    """The first sample of a group, for people."""
    sample = group.samples[0]
    return {
        "step": step,
        "prompt": group.prompt.text,
        "completion": sample.text,
        "answer": as_text(group.prompt.answer),
        "reward": sample.reward,
        "parts": dict(sample.parts),
        "version": sample.version,
        "finish": sample.finish,
        **({"turns": [turn.reward for turn in sample.turns], "episode": dict(sample.episode)} if sample.turns else {}),
    }


class TrainingBar:
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


def _keep_until(path: Path, step: int, row: Mapping[str, object] | None = None) -> None:
    """Drop the lines of later steps, and a last line that an interruption cut short; add `row`, of `step`, if it is missing."""
    if not path.exists() and not row:
        return
    kept, last = list[str](), 0
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            at = json.loads(line)["step"]
        except json.JSONDecodeError:
            break
        if at <= step:
            kept.append(line + "\n")
            last = at
    if row and last < step == row["step"]:
        kept.append(json.dumps(row) + "\n")
    write_whole(path, "".join(kept))


def _drop_half_line(path: Path) -> None:
    """Drop a last line that was cut short, so that the next is a line of its own."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _plain(value: object) -> object:
    """JSON has no NaN: a metric without a value is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
