"""The driver with a hundred engines: `python examples/speed/driver.py [ENGINES RANKS PROMPTS SAMPLES TOKENS]`.

The loop, the pool of engines, the learner group and Ray are those of a run. Engines and ranks are stand-ins: they compute
nothing, answer after as long as models of the given speeds would take (a hundred times sooner, so that one can wait for it),
and exchange arrays as large as real ones. Several share a process; to the driver each is an actor of its own.

The driver's time is the processor time of its process in a step, all threads: what it computes, what it copies, and what Ray
does in it. It is compared with the step that the given speeds make, of a 7B model on cards that learn and sample at the same
time: 10,000 tokens/s for an engine, 7,000 for a rank with the reference.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rlopt.cluster.actors import Workers
from rlopt.config.compose import default_section, read
from rlopt.config.learners import LearnerConfig
from rlopt.core.protocols import Sent
from rlopt.core.reduce import Max, Mean, Metric
from rlopt.core.requests import EngineLogprobs, SampleRequest
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.core.table import SequenceTable, Update
from rlopt.learner.group import Learners
from rlopt.objectives.core import no_loss_terms
from rlopt.objectives.grpo import GRPO
from rlopt.orchestrator.lockstep import LockstepSampler
from rlopt.orchestrator.loop import Loop, Plan
from rlopt.orchestrator.online_source import OnlineSource, Shares
from rlopt.orchestrator.progress import Position
from rlopt.orchestrator.schedule import Schedule
from rlopt.rollout.engine_pool import EnginePool
from rlopt.tracking.journal import Journal
from rlopt.weight_sync.synchronizer import Synchronizer

ENGINE_SPEED, RANK_SPEED = 10_000, 7_000
"""Tokens a second."""

SOONER, STEPS, HOSTS, PROMPT = 100, 5, 2, 256
"""How much less the stand-ins wait; steps; processes of the stand-ins of each kind; tokens of a prompt."""


@dataclass(frozen=True)
class Size:
    engines: int = 64
    ranks: int = 64
    prompts: int = 1024
    samples: int = 16
    tokens: int = 8192

    @property
    def step_tokens(self) -> int:
        return self.prompts * self.samples * self.tokens

    @property
    def step_s(self) -> float:
        """Of a step in which engines and ranks work at the same time."""
        return max(self.step_tokens / self.engines / ENGINE_SPEED, self.step_tokens / self.ranks / RANK_SPEED)


class Engines:
    """Some engines that share a process."""

    def __init__(self, size: Size) -> None:
        self._size, self._version = size, 0
        shape, chance = (size.samples, size.tokens), np.random.default_rng(0)
        self._ids = chance.integers(0, 150_000, shape, dtype=np.int32)
        self._mask, self._logprobs = np.ones(shape, np.bool_), -chance.random(shape, dtype=np.float32)
        self._text = "text" * size.tokens

    def start(self) -> None: ...
    def close(self) -> None: ...
    def busy_s(self) -> float:
        return 0.0

    def receive(self, version: int) -> None:
        self._version = version

    async def sample(self, request: SampleRequest) -> Group:
        share = self._size.prompts / self._size.engines * self._size.samples * self._size.tokens / ENGINE_SPEED
        await asyncio.sleep(np.random.default_rng().random() * share / SOONER)
        versions = np.full(self._ids.shape, self._version, np.int32)
        arrays = zip(self._ids, self._mask, self._logprobs, versions, strict=True)
        samples = tuple(
            Sample(request.prompt.id, *four, self._text + str(place), "stop", float(place % 2), {})
            for place, four in enumerate(arrays)
        )
        return Group(request.prompt, samples)

    def canary(self, texts: list[tuple[int, ...]]) -> list[EngineLogprobs]:
        return [EngineLogprobs(np.full(len(text) - 1, -0.5, np.float32), self._version) for text in texts]


class Ranks:
    """Some learner ranks that share a process."""

    def __init__(self, size: Size) -> None:
        self._size, self._engines = size, dict[int, Any]()

    def address(self) -> tuple[str, int]:
        return "", 0

    def close(self) -> None: ...
    def connect(self, engines: dict[int, Any], ranks_per_engine: int, address: tuple[str, int]) -> None:
        self._engines = engines

    async def sync(self, version: int, only: list[int] | None) -> Sent:
        await asyncio.gather(*(engine.receive.remote(version) for engine in {*self._engines.values()}))
        return Sent(0, 0.0, {}, set())

    async def update(self, share: list[Update], step: int) -> dict[str, Metric]:
        await asyncio.sleep(sum(int(piece.lengths.sum()) for piece in share) / RANK_SPEED / SOONER)
        means = {f"objective/{number}": Mean(1.0, 2.0) for number in range(15)}
        return {**means, "actor/grad_norm": Max(1.0)}

    def score_policy(self, pieces: list[SequenceTable], temperature: float) -> list[np.ndarray]:
        return [np.full(piece.shape, -0.5, np.float32) for piece in pieces]

    score_reference = score_policy


class Clocked(Journal):
    """Notes the processor time of the driver after every step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.spent: list[tuple[float, float]] = []

    def step(self, metrics: Any, groups: list[Group], policy: Tensor | None) -> None:
        super().step(metrics, groups, policy)
        self.spent.append((time.process_time(), time.thread_time()))


@contextmanager
def cluster(size: Size) -> Iterator[tuple[list[Any], list[Any]]]:
    """Processes with engines, and processes with ranks."""
    ray.init(num_cpus=2 * HOSTS, include_dashboard=False, log_to_driver=False, object_store_memory=10 * 2**30)
    try:
        yield tuple(
            [ray.remote(kind).options(num_cpus=0, max_concurrency=10_000).remote(size) for _ in range(HOSTS)]
            for kind in (Engines, Ranks)
        )  # type: ignore[misc]
    finally:
        ray.shutdown()


def measure(size: Size, folder: Path) -> list[tuple[float, float]]:
    """Seconds of processor time of each step but the first: of the driver's process, and of its main thread."""
    prompts = [Prompt(f"p{i}", tuple(range(PROMPT)), "text", "1", "made up") for i in range(size.prompts)]
    objective = GRPO(clip_low=0.2, clip_high=0.2, std="population", average="token_mean")
    with cluster(size) as (engine_hosts, rank_hosts):
        names = iter(range(10**6))
        engines = EnginePool(
            lambda name, _: Workers(name, [engine_hosts[next(names) % HOSTS]], 600.0), size.engines, 600.0, 120.0
        )
        engines.join_all()
        ranks = Workers("learner", [rank_hosts[i % HOSTS] for i in range(size.ranks)], 600.0)
        config = read(LearnerConfig, {**default_section("learner"), "token_budget": 4 * (size.tokens + PROMPT)}, "learner.")
        learners = Learners(ranks, config, "sequence", 1.0)
        journal = Clocked(folder, 0, STEPS, 2, [], Console(quiet=True), None)
        sync = Synchronizer(learners, engines, [(1, 2, 3)], True, 1e-3, 1, journal, lambda: size.engines)
        requests = [SampleRequest(prompt, "0") for prompt in prompts]
        lockstep = LockstepSampler(Schedule(1, 1), lambda _: requests, engines, sync, STEPS, 600.0, sleep=False, requested=0)
        Loop(
            plan=Plan(STEPS, 0, record=False, old_logprobs="behavior", minibatches=1, reference_every=1),
            objective=objective,
            terms=no_loss_terms(size.tokens),
            source=OnlineSource(Shares(size.prompts, 0, 0, size.samples), lockstep, None, None, learners, None),
            learners=learners,
            journal=journal,
            save=lambda position, pending: True,
            asked_to_save=lambda metrics: False,
            stepped=lambda: None,
            asked_to_stop=lambda: False,
        ).run(Position())
        journal.close(exit_code=0)
    both = zip(journal.spent, journal.spent[1:], strict=False)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in both]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Size):
        parser.add_argument(field.name, type=int, nargs="?", default=field.default, help=f"{field.default} without it")
    size = Size(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(size, Path(folder))
    title = f"{size.engines} engines, {size.ranks} ranks, {size.step_tokens:,} response tokens a step"
    table = Table(title=title, title_justify="left", width=90)
    for column in ("step", "driver (s)", "its main thread (s)", "of a step"):
        table.add_column(column, justify="right")
    for number, (process, thread) in enumerate(spent, 2):
        table.add_row(str(number), f"{process:.2f}", f"{thread:.2f}", f"{process / size.step_s:.1%}")
    Console().print(table)
    print(f"a step takes {size.step_s:.0f} s: {ENGINE_SPEED:,} tokens/s for an engine, {RANK_SPEED:,} for a rank")


if __name__ == "__main__":
    main()
