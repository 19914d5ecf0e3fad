"""Two vLLM engines and a DeepSpeed learner that run after run takes over, and that can be meddled with.

Starting them costs half a minute; a run of a few small steps on them costs seconds.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from builders import compose
from conftest import SMALL
from rich.console import Console

from rlopt.config.sections import RewardConfig, RolloutConfig
from rlopt.core.reduce import Metric
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Group, PendingRollouts
from rlopt.learner.group import Learners
from rlopt.learner.worker import LearnerSetup, LearnerWorker
from rlopt.objectives.core import LossTerms, Objective
from rlopt.orchestrator.progress import Position
from rlopt.rollout import worker
from rlopt.rollout.vllm_engine import PauseMode
from rlopt.rollout.worker import RolloutWorker
from rlopt.run import launch, validate, wiring, workers
from rlopt.tracking.journal import Journal
from rlopt.weight_sync.sender import write_shared

LONGEST = 128
"""Tokens of a sequence; `tiny_s` takes no more."""

SLOW_S = 2.0
"""Seconds that a slow side takes for a step: many times what the other does, also on a busy machine."""


class Engine(RolloutWorker):
    """An engine that does one thing wrong when told to: with its samples, or the next few times with its weights."""

    wrong = ""
    spoiling, times = "", 0
    naps = 0

    def __init__(self, *arguments: Any) -> None:  # without one of its own, an actor of this class does not start
        super().__init__(*arguments)

    async def sleep(self) -> None:
        self.naps += 1
        assert not self._computing
        await super().sleep()
        assert await self._llm.is_sleeping()

    def napped(self) -> int:
        return self.naps

    def follow(self, in_flight: PauseMode, config: RolloutConfig, reward: RewardConfig) -> None:
        """Do as another run asks."""
        self._pause_mode, self._config = in_flight, config
        if reward != self._reward:
            self._rewards.close()
            self._rewards = self._graders(reward)
            self._reward = reward

    def meddle(self, wrong: str) -> None:
        self.wrong = wrong
        changes: dict[str, Any] = {
            "temperature": {"temperature": 0.6},
            "top-p": {"top_p": 0.8},
            "truncation": {"max_new_tokens": 12},
        }
        self._config = replace(self._config, **changes.get(wrong, {}))

    async def _samples(self, request: SampleRequest) -> Group:
        if self.wrong == "slow sampler" or (self.wrong == "some slow" and sum(request.prompt.token_ids) % 8 == 0):
            await asyncio.sleep(SLOW_S)
        asked = request
        if self.wrong == "retokenized":  # the engine was given the last token of the prompt twice
            asked = replace(
                request, prompt=replace(request.prompt, token_ids=request.prompt.token_ids + request.prompt.token_ids[-1:])
            )
        group = await super()._samples(asked)
        samples = list(group.samples)
        if self.wrong == "noise":
            import numpy as np

            chance = np.random.default_rng(len(request.prompt.text))
            samples = [
                replace(s, logprobs=(s.logprobs + chance.normal(0, 0.2, len(s.logprobs))).astype(np.float32)) for s in samples
            ]
        if self.wrong == "one reward":
            samples = [replace(s, reward=0.5) for s in samples]
        if self.wrong == "no signal":
            samples = [replace(s, reward=float(len(request.prompt.text) % 2)) for s in samples]
        return replace(group, prompt=request.prompt, samples=tuple(samples))

    def spoil(self, how: str, times: int) -> None:
        self.spoiling, self.times = how, times

    async def start_weight_update(self) -> None:
        self._now, self._bucket = (self.spoiling if self.times > 0 else ""), 0
        self.times -= 1
        if self._now != "deaf":
            await super().start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """The file is not touched: the other engine reads it too."""
        self._bucket += 1
        data, number = Path(update_info["path"]).read_bytes(), self._bucket
        kept: dict[int, list[bytes]] = getattr(self, "_kept", {})
        self._kept = {**kept, number: [*kept.get(number, [])[:1], data]}  # the first ever, and the last
        if self._now == "deaf" or (self._now == "dropped" and number == 2):
            return
        if self.wrong == "nothing delivered":
            data = self._kept[number][0]
        if self._now == "stale" and number == 2:
            data = kept[number][-1]
        if self._now == "corrupt" and number == 2:
            data = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        path = write_shared(data)
        await super().update_weights({**update_info, "path": path})
        os.unlink(path)

    async def finish_weight_update(self, weight_version: str) -> None:
        if self._now != "deaf":
            await super().finish_weight_update(weight_version)


class Learner(LearnerWorker):
    """A learner that can be given another objective, sends in several buckets, and can be pushed a little."""

    slow_s = 0.0

    def __init__(self, setup: LearnerSetup, *rest: Any) -> None:
        super().__init__(replace(setup, bucket_bytes=100_000), *rest)

    def push(self, by: float) -> None:
        for _, parameter in self._source.learned():
            parameter.data += by
        self._moved = 1.0

    def follow(self, objective: Objective, terms: LossTerms, verify: bool, lr: float, slow_s: float) -> None:
        self._setup = replace(self._setup, objective=objective, terms=terms, verify=verify)
        self._config = replace(self._config, lr=lr)
        self.slow_s = slow_s

    def update(self, *arguments: Any) -> dict[str, Metric]:
        time.sleep(self.slow_s)
        return super().update(*arguments)


def prepared_for(folder: Path, *overrides: str) -> validate.Prepared:
    config = compose(*overrides, f"run.dir={folder}", "tracking.wandb=disabled")
    return validate.validate(config, Console(quiet=True))


@contextmanager
def started(folder: Path) -> Iterator[workers.RunWorkers]:
    """Engines and a learner, and in `folder / "fresh"` the learner as it begins."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:  # to the end, for engines that replace lost ones
        patch.setattr(workers, "LearnerWorker", Learner)
        patch.setattr(worker, "RolloutWorker", Engine)
        first = prepared_for(folder / "first", "+algo=grpo", "rollout.engines=2", *SMALL)
        crew = workers.RunWorkers(replace(first, data=replace(first.data, longest=LONGEST)))
        crew.start()
        crew.join()
        crew.learners.save(folder / "fresh")
        yield crew
        crew.close()


def instruct(
    crew: workers.RunWorkers, prepared: validate.Prepared, fresh: Path | None = None, wrong: str = "", lr: float = 3e-4
) -> None:
    """Make engines and learner those of what was prepared; with `fresh`, with the model as it was there."""
    config, engines = prepared.config, crew.engines
    assert engines
    assert crew._ranks
    if fresh:
        crew.learners.load(fresh)
    for key in engines.asked:  # what the run before had asked for in vain
        engines.cancel(key)
    in_flight = config.sync.in_flight if config.sync.mode == "async" else "wait"
    ray.get([handle.follow.remote(in_flight, config.rollout, config.reward) for handle in engines.handles.values()])
    ray.get([handle.meddle.remote(wrong) for handle in engines.handles.values()])
    slow_s = SLOW_S if wrong == "slow learner" else 0.0
    crew._ranks.call("follow", [prepared.objective, prepared.terms, config.sync.verify, lr, slow_s])
    unit = prepared.objective.traits.unit
    crew._learners = Learners(crew._ranks, config.learner, unit, config.rollout.temperature)


def train(
    crew: workers.RunWorkers,
    prepared: validate.Prepared,
    fresh: Path | None = None,
    wrong: str = "",
    lr: float = 3e-4,
    keep: bool = False,
) -> list[tuple[Position, PendingRollouts]]:
    """Run what was prepared on the crew; with `fresh`, from the model as it was there. What would be saved, and when.

    A run that goes on from a checkpoint does so here too. With `keep`, checkpoints are written as a run writes them.
    """
    instruct(crew, prepared, fresh, wrong, lr)
    crew.bring_back(prepared)
    config = replace(prepared.config, rollout=replace(prepared.config.rollout, engines=2))
    prepared = replace(prepared, config=config)
    position = Position(**prepared.start.state["position"])
    recorder = launch._recorder(prepared, position.step)
    journal = Journal(prepared.start.run, position.step, config.trainer.total_steps, 1, [], Console(quiet=True), recorder)
    saved: list[tuple[Position, PendingRollouts]] = []
    loop = wiring.make_loop(prepared, crew, journal)
    if not keep:
        loop = replace(loop, save=lambda position, pending: saved.append((replace(position), pending)) is None)
    try:
        loop.run(position)
    finally:
        journal.close(0)
    return saved
