"""The speed of a config's parts on this machine, each alone and then together, beside what the machine could do at most.

Engines and learner are those of a run. One window of batches (`sync.interval` steps) is sampled while the learner waits, then
learned from while the engines wait; the next window runs as in training. Asynchronous runs have no such windows: as many steps
as make every lag possible take their place, and before the two run together as many pass uncounted.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import psutil
import torch
from rich.console import Console

from rlopt.cluster.threads import cores
from rlopt.config.schema import Config
from rlopt.core.errors import need
from rlopt.orchestrator.loop import Loop, StepData
from rlopt.run.peer import PeerSpeed, check_peer, measure_trl
from rlopt.run.validate import Prepared, validate
from rlopt.run.wiring import make_loop
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal

T = TypeVar("T")
SIDE, COPIED = 2048, 2**28
"""Rows of the matrices that are multiplied, and bytes that are copied, to see what a device can do."""


@dataclass(frozen=True)
class Machine:
    """What a device can do at most: multiply matrices in the model's dtype (operations/s), and copy memory (bytes/s)."""

    matrix: float
    copy: float

    def or_faster(self, again: "Machine") -> "Machine":
        """Each rate as the faster of two measurements: whatever disturbs one makes it slower, and a ceiling too low."""
        return Machine(max(self.matrix, again.matrix), max(self.copy, again.copy))


@dataclass(frozen=True)
class Speeds:
    """The parts of a config, measured.

    Attributes:
        tokens: response tokens of a window. sequence_tokens: with the prompts. samples: of the window.
        start_s: from nothing to engines and learner that answer.
        engine_s, reference_s, update_s: of the window, each part alone. `reference_s` is all scoring before the updates: also
            the policy's, where `algo.old_logprobs` asks for it, without the reference's where `algo.kl.every` leaves it out.
        engine_cpu_s, learner_cpu_s: processor time of each part alone, if all workers compute on this machine's CPUs.
        cores: of the machine.
        together_s: of the next window, all parts at once, with its synchronizations. together_samples, together_tokens: in it.
        sync_s, sync_bytes: of its first synchronization.
        peer: TRL on the same work, where it was asked for.
    """

    machine: Machine
    parameters: int
    ranks: int
    engines: int
    samples: int
    tokens: int
    sequence_tokens: int
    start_s: float
    engine_s: float
    reference_s: float
    update_s: float
    together_s: float
    together_samples: int
    together_tokens: int
    sync_s: float
    sync_bytes: float
    engine_cpu_s: float | None = None
    learner_cpu_s: float | None = None
    cores: int = 1
    peer: PeerSpeed | None = None

    @property
    def sampling_floor_s(self) -> float:
        """The window's sampling if its matrices were multiplied at the machine's rate: 2 operations a parameter and token."""
        return 2 * self.parameters * self.sequence_tokens / self.machine.matrix

    @property
    def update_floor_s(self) -> float:
        """As `sampling_floor_s`, of the updates: 6 operations a parameter and token. The reference takes a third of it."""
        return 6 * self.parameters * self.sequence_tokens / self.machine.matrix

    @property
    def efficiency(self) -> float:
        """Tokens a second together, over those of the slower of engine and learner alone.

        Not samples: answers change their lengths as the policy learns.
        """
        return self._of_together(max(self.engine_s, self.reference_s + self.update_s))

    @property
    def core_efficiency(self) -> float | None:
        """As `efficiency`, where engine and learner share cores, which nobody uses twice: over all their processor time as
        well, if every core were busy from beginning to end."""
        if self.engine_cpu_s is None or self.learner_cpu_s is None:
            return None
        busy = (self.engine_cpu_s + self.learner_cpu_s) / self.cores
        return self._of_together(max(self.engine_s, self.reference_s + self.update_s, busy))

    def _of_together(self, seconds: float) -> float:
        return seconds / self.tokens / (self.together_s / self.together_tokens)

    def as_json(self) -> dict[str, object]:
        derived = {
            "sampling_floor_s": self.sampling_floor_s,
            "update_floor_s": self.update_floor_s,
            "efficiency": self.efficiency,
            "core_efficiency": self.core_efficiency,
        }
        return asdict(self) | derived


def benchmark(config: Config, console: Console, peer: bool = False) -> Speeds:
    """Start what a run of `config` starts, measure it, and end it; then TRL, if `peer`. Nothing is left behind.

    Raises:
        RloptError: the config cannot be run, or samples nothing; or TRL cannot.
    """
    if peer:
        check_peer(config.cluster.gpus_per_engine + config.cluster.gpus_per_learner)
    need(config.samples, "algo.name", config.algo.name, "samples nothing, so there is no engine to measure")
    with tempfile.TemporaryDirectory() as folder:
        trainer = replace(config.trainer, total_steps=4 * window(config) + 1, save_every=0)
        prepared = validate(replace(config, trainer=trainer, run=replace(config.run, dir=folder, record=False)), console)
        torch.set_num_threads(1)
        began, workers = time.monotonic(), RunWorkers(prepared)
        try:
            with console.status("starting engines and learners"):
                workers.start()
                workers.join()
            started = time.monotonic() - began
            with console.status("measuring"):
                top = machine(prepared)  # now that nothing is being started
                speeds = measure(prepared, workers, top, started)
                speeds = replace(speeds, machine=top.or_faster(machine(prepared)))
        finally:
            workers.close()
        if not peer:
            return speeds
        with console.status("measuring TRL"):
            return replace(speeds, peer=measure_trl(prepared))


def window(config: Config) -> int:
    """Steps that are measured at a time."""
    interval, max_lag = config.sync.interval, config.sync.max_lag
    if config.sync.mode == "lockstep" or max_lag is None:
        return interval
    return interval * (max_lag // interval + 1)


def measure(prepared: Prepared, workers: RunWorkers, top: Machine, start_s: float) -> Speeds:
    """Measure workers that are up."""
    config, steps = prepared.config, window(prepared.config)
    journal = Journal(prepared.start.run, 0, 4 * steps + 1, 0, [], Console(quiet=True), None)
    windows = replace(config.sync, mode="lockstep", interval=steps, max_lag=None, in_flight="keep", stale="wait")
    loop = make_loop(replace(prepared, config=replace(config, sync=windows)), workers, journal)
    loop.source.open(0)
    processor = _Processor(config)
    engine_s, data = _timed(lambda: [loop.source.take(step) for step in range(1, steps + 1)])
    engine_cpu_s = processor.passed()
    loop.learners.update(loop.scored(data[0], 1)[1], 1)  # the first of all, in which memory is found, and layers compiled
    processor.passed()
    reference_s, update_s = 0.0, 0.0
    for step, batch in enumerate(data, 1):
        seconds, (_, updates) = _timed(partial(loop.scored, batch, step))
        reference_s += seconds
        update_s += _timed(partial(loop.learners.update, updates, step))[0]
    learner_cpu_s = processor.passed()
    done = steps
    if config.sync.mode == "async":
        loop = make_loop(prepared, workers, journal)
        loop.source.open(done)
        _run(loop, done, steps)
        done += steps
    began = time.monotonic()
    sync_s, sync = _timed(lambda: loop.source.learned(done))
    together = _run(loop, done, steps)
    together_s = time.monotonic() - began
    journal.close(exit_code=0)
    first, second = ([batch.sequences for batch in taken] for taken in (data, together))
    return Speeds(
        machine=top,
        parameters=prepared.model.shape.parameters,
        ranks=config.learner.workers,
        engines=config.rollout.engines,
        samples=sum(map(len, first)),
        tokens=int(sum(sequences.sampled.sum() for sequences in first)),
        sequence_tokens=int(sum(sequences.lengths.sum() for sequences in first)),
        start_s=start_s,
        engine_s=engine_s,
        reference_s=reference_s,
        update_s=update_s,
        together_s=together_s,
        together_samples=sum(map(len, second)),
        together_tokens=int(sum(sequences.sampled.sum() for sequences in second)),
        sync_s=sync_s,
        sync_bytes=sync["sync/bytes"],
        engine_cpu_s=engine_cpu_s,
        learner_cpu_s=learner_cpu_s,
        cores=cores(),
    )


def _run(loop: Loop, done: int, steps: int) -> list[StepData]:
    """Train for some steps after the first `done`, as `loop.run` does; what they learned from. The last is not synchronized."""
    data = []
    for step in range(done + 1, done + steps + 1):
        data.append(loop.source.take(step))
        _, updates = loop.scored(data[-1], step)
        loop.learners.update(updates, step)
        if step < done + steps:
            loop.source.learned(step)
    return data


class _Processor:
    """Processor time of this process and all that came from it, where all workers are on this machine's CPUs."""

    def __init__(self, config: Config) -> None:
        gpus = config.cluster.gpus_per_engine or config.cluster.gpus_per_learner
        self._here, self._last = config.cluster.address == "local" and not gpus, 0.0
        self.passed()

    def passed(self) -> float | None:
        """Seconds since the last call; None where workers are elsewhere."""
        if not self._here:
            return None
        here, before, self._last = psutil.Process(), self._last, 0.0
        for process in [here, *here.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._last += times.user + times.system
        return self._last - before


def machine(prepared: Prepared) -> Machine:
    """What the learner's device can do, or all cores of this machine."""
    device = "cuda" if prepared.config.cluster.gpus_per_learner else "cpu"
    if device == "cpu":
        torch.set_num_threads(cores())
    side = SIDE if device == "cpu" else 4 * SIDE
    left, right = (torch.randn(side, side, dtype=prepared.model.dtype, device=device) for _ in range(2))
    here = torch.ones(COPIED // 4, device=device)
    there = torch.empty_like(here)
    multiplying = _best(lambda: torch.matmul(left, right), device)
    copying = _best(lambda: there.copy_(here), device)
    torch.set_num_threads(1)
    return Machine(2 * side**3 / multiplying, COPIED / copying)


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of five, after one that warms up."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(5))


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result
