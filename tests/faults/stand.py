"""`python stand.py FAULTS.json +algo=grpo ...`: a run in which faults happen one after another, each in a phase of its own.

The hooks are here and not in rlopt. A victim is found by its actor or by Ray's own list of processes, never by a name. When
each fault happened, and when each step was written, goes to `times.json` beside the faults' file. A fault waits until the one
before is over: it was noticed, where it has to be, and after that a step was made.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from rlopt.evaluation.evaluator import Evaluator
from rlopt.learner.group import Learners
from rlopt.rollout.engine_pool import EnginePool
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal
from rlopt.train import main

DELAY_S = {
    "starting": 0.3,
    "sampling": 0.05,
    "learning": 0.01,
    "syncing": 0.01,
    "saving": 0.01,
    "evaluating": 0.05,
    "ending": 0.0,
}
"""Seconds from the beginning of a phase to the fault."""

SLOW_S, FULL_S = 3.0, 0.8
"""Seconds that what is slow is stopped for, and that the disk or the shared memory is full."""

NOTICED = {("engine", "killed"), ("engine", "stopped"), ("scheduler", "killed"), ("scheduler", "stopped")}
NOTICED |= {("learner", "killed"), ("learner", "stopped"), ("raylet", "killed"), ("gcs_server", "killed")}
"""Faults that a run has to notice: the next waits until `events.jsonl` has it. (None comes after that of the clock.)"""


class Stand:
    """The faults, the workers of the run, and what is written down."""

    def __init__(self, file: Path) -> None:
        said = json.loads(file.read_text())
        self.faults: list[list[str]] = said["faults"]
        self.folder = Path(said["folder"])
        self.file, self.workers = file.with_name("times.json"), None
        self.number, self.entered = 0, 0
        self.times: dict[str, Any] = {"steps": [], "faults": []}

    def note(self) -> None:
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps(self.times))
        aside.rename(self.file)

    def enter(self, phase: str, at: int = 2) -> None:
        """The run does this now. The first fault comes when it does it for the `at`-th time, the others at once."""
        if self.number == len(self.faults) or phase != self.faults[self.number][2]:
            return
        self.entered += 1
        if self.entered == (1 if self.number else at):
            threading.Timer(DELAY_S[phase], self.strike).start()

    def stepped(self, step: int) -> None:
        """A step was written."""
        self.times["steps"].append([step, time.time()])
        if len(self.times["faults"]) > self.number and self.is_over():
            self.number, self.entered = self.number + 1, 0
        self.note()

    def is_over(self) -> bool:
        """Whether the fault that is there has been noticed and repaired, or needs not be."""
        victim, kind, _ = self.faults[self.number]
        if (victim, kind) not in NOTICED:
            return time.time() > self.times["faults"][-1] + (SLOW_S if kind == "slow" else 0)
        struck, events = self.times["faults"][-1], map(json.loads, (self.folder / "events.jsonl").read_text().splitlines())
        return any(event["time"] > struck and event["event"].endswith("_lost") for event in events)

    def strike(self) -> None:
        victim, kind, _ = self.faults[self.number]
        pids = self.pids(victim)
        if (written := self.folder / "metrics.jsonl").exists():
            shutil.copy(written, self.file.with_name("before.jsonl"))
        self.times["faults"].append(time.time())
        self.note()
        if (victim, kind) == ("clock", "slow"):  # set back by an hour
            now = time.time
            time.time = lambda: now() - 3600
        elif kind == "killed":
            _signal(pids, signal.SIGKILL)
        elif kind in ("stopped", "slow"):
            _signal(pids, signal.SIGSTOP)
            if kind == "slow":
                time.sleep(SLOW_S)
                _signal(pids, signal.SIGCONT)
        elif (victim, kind) == ("disk", "full"):
            fill(self.folder.parent / "ballast", FULL_S)
        elif (victim, kind) == ("shared memory", "full"):
            fill(Path("/dev/shm/ballast"), FULL_S)
        elif (victim, kind) == ("run folder", "gone"):
            while self.folder.exists():  # the run writes into it, and removes from it, meanwhile
                shutil.rmtree(self.folder, ignore_errors=True)
        else:
            raise ValueError(f"{victim} {kind}")

    def pids(self, victim: str) -> list[int]:
        """The processes of the victim."""
        if victim in ("disk", "shared memory", "run folder", "clock"):
            return []
        if victim == "driver":
            return [os.getpid()]
        if victim in ("raylet", "gcs_server"):
            return [ray._private.worker._global_node.all_processes[victim][0].process.pid]
        workers: Any = self.workers
        actor = workers._ranks if victim == "learner" else workers.engines.workers[0]
        while not actor._known():  # it is being started
            time.sleep(0.02)
        pid = actor._known()[0].pid
        if victim in ("learner", "engine"):
            return [pid]
        inside = {"scheduler": scheduler_of, "reward": rewards_of}[victim]
        return list(ray.get(actor.handles[0].__ray_call__.remote(inside), timeout=30))


def scheduler_of(worker: Any) -> list[int]:
    """The process of vLLM's engine, in the actor."""
    return [process.pid for process in worker._llm.engine_core.resources.engine_manager.processes]


def rewards_of(worker: Any) -> list[int]:
    """The processes that grade, in the actor."""
    return [one._process._process.pid for one in worker._rewards._pool._workers]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        psutil.Process(pid).send_signal(number)


def fill(ballast: Path, seconds: float) -> None:
    """Fill the disk of a file, which is made, for so long."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 2**16):
                pass
        except OSError:
            pass
    time.sleep(seconds)
    ballast.unlink()


def hook(
    cls: type, name: str, before: Callable[[Any], None], after: Callable[[Any, tuple[Any, ...]], None] | None = None
) -> None:
    method = getattr(cls, name)

    def hooked(self: Any, *arguments: Any, **named: Any) -> Any:
        before(self)
        result = method(self, *arguments, **named)
        if after:
            after(self, arguments)
        return result

    setattr(cls, name, hooked)


def prepare(stand: Stand) -> None:
    """Have the run tell what it does."""

    def starting(workers: Any) -> None:
        stand.workers = workers
        stand.enter("starting", at=1)

    hook(RunWorkers, "join", starting)
    hook(EnginePool, "wait", lambda _: stand.enter("sampling", at=4))
    hook(Learners, "update", lambda _: stand.enter("learning", at=6))
    hook(Learners, "sync", lambda _: stand.enter("syncing", at=3))
    hook(Learners, "save", lambda _: stand.enter("saving"))
    hook(Evaluator, "measure", lambda _: stand.enter("evaluating", at=1))
    hook(RunWorkers, "close", lambda _: stand.enter("ending", at=1))

    hook(Journal, "step", lambda _: None, lambda _, arguments: stand.stepped(int(arguments[0]["step"])))


if __name__ == "__main__":
    prepare(Stand(Path(sys.argv.pop(1))))
    main()
