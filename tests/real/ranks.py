"""Learner ranks without Ray and without engines: processes that meet over gloo and learn from batches made by hand."""

import gc
import multiprocessing
import os
import queue
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from builders import OBJECTIVE, sample, terms, update_of
from storages import Storages
from torch import Tensor

from rlopt.cluster import leftovers
from rlopt.config.compose import default_section, read
from rlopt.config.learners import LearnerConfig
from rlopt.core.samples import Group, Prompt
from rlopt.core.table import Update
from rlopt.learner.deepspeed_engine import sharded_at_once
from rlopt.learner.worker import LearnerSetup, LearnerWorker
from rlopt.models.policy import Policy
from rlopt.objectives.core import merge

Shares = list[list[Update]]
"""The micro-batches of each rank."""


@dataclass(frozen=True)
class Case:
    """One model that learns from the same shares `updates` times."""

    folder: Path
    config: LearnerConfig
    dtype: torch.dtype
    shares: Shares
    updates: int = 2
    kept: Path | None = None
    """Where to save after the first update; a second learner goes on from there and makes the others again."""


@dataclass(frozen=True)
class Learned:
    """What came of a case: metrics of each update, the weights that learn at the start, and after each update.

    Where the case was kept, those that were made again come last.
    """

    metrics: list[dict[str, float]]
    weights: list[dict[str, Tensor]]

    def moved(self, update: int = -1) -> Tensor:
        """How far all weights went from the start, as one vector."""
        return torch.cat([(self.weights[update][name] - start).flatten() for name, start in self.weights[0].items()])


def learner_config(**changed: Any) -> LearnerConfig:
    """As `conf/config.yaml` has it, but for what is `changed`."""
    return read(LearnerConfig, {**default_section("learner"), "lr": 1e-3, **changed}, "learner.")


def update(lengths: Sequence[int], vocabulary: int) -> Update:
    """Groups of two samples with responses of these lengths, the first of which is right."""
    groups = []
    for number, pair in enumerate(zip(lengths[::2], lengths[1::2], strict=True)):
        name = f"p{number}"
        samples = [replace(sample(length, 1.0 - i, prompt_id=name)) for i, length in enumerate(pair)]
        samples = [replace(s, token_ids=(s.token_ids * (3 + 2 * number + i)) % vocabulary) for i, s in enumerate(samples)]
        groups.append(Group(Prompt(name, (5, 6 + number), "", "", ""), tuple(samples)))
    return update_of(groups)


def learn(cases: Sequence[Case], world: int, deadline_s: float = 240.0) -> list[Learned | str]:
    """What `world` ranks make of each case, or the error that a rank raised, also for the cases after it."""
    with _ranks(_rank, cases, world) as found:
        return _heard(cases, found, deadline_s)


def _heard(cases: Sequence[Case], found: Any, deadline_s: float) -> list[Learned | str]:
    answers: list[Learned | str] = []
    for case in cases:
        metrics, weights = [], []
        try:
            said: Any = found.get(timeout=deadline_s)
        except queue.Empty:
            said = f"{case}: the ranks wait for each other"
        if isinstance(said, str):
            return answers + [said] * (len(cases) - len(answers))
        for step, (measured, arrays) in enumerate(said):
            weights.append({name: torch.from_numpy(array) for name, array in arrays.items()})
            if step:
                metrics.append(measured)
        answers.append(Learned(metrics, weights))
    return answers


@contextmanager
def _ranks(target: Callable[..., None], what: Any, world: int) -> Iterator[Any]:
    """Processes that run `target(what, rank, world, port, found)`; yields the queue `found`, and ends them."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    found: Any = context.Queue()
    arguments = [(target, what, rank, world, port, found) for rank in range(world)]
    ranks = [context.Process(target=_named, args=one, daemon=True) for one in arguments]
    for rank in ranks:
        rank.start()
    try:
        yield found
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _named(target: Callable[..., None], *arguments: Any) -> None:
    """Call `target` with semaphores that are named after this process: when it is killed they stay until the tests end, and
    tests beside these look at what commands leave.
    """
    os.environ[leftovers.MARK] = f"0-{os.getpid():x}-0"
    leftovers.name_shared_memory()
    target(*arguments)


@dataclass(frozen=True)
class Held:
    """Weights of a model that a rank has loaded: whole ones, those of its shards, and the most that were whole at a time."""

    gathered: int
    sharded: int
    most: int


def loaded(case: Case, world: int, deadline_s: float = 120.0) -> list[Held]:
    """What each rank holds of the policy when it is loaded and not yet in DeepSpeed's engine."""
    with _ranks(_load, case, world) as found:
        return [found.get(timeout=deadline_s) for _ in range(world)]


def _load(case: Case, rank: int, world: int, port: int, found: Any) -> None:
    LearnerWorker(_setup(case), case.config, rank, world).join(("127.0.0.1", port))
    import deepspeed

    most, gathering = 0, deepspeed.zero.GatheredParameters.__init__

    def gathered(self: Any, params: list[Any], *more: Any, **options: Any) -> None:
        nonlocal most
        gathering(self, params, *more, **options)
        most = max(most, sum(parameter.ds_numel for parameter in params))

    deepspeed.zero.GatheredParameters.__init__ = gathered
    with sharded_at_once(case.config, case.dtype):
        weights = list(Policy(case.folder, case.dtype, 16).lm.parameters())
    shards: list[Any] = [weight.ds_tensor for weight in weights]  # type: ignore[attr-defined]
    found.put(Held(sum(weight.numel() for weight in weights), sum(shard.numel() for shard in shards), most))


def peaks(cases: Sequence[Case], world: int, deadline_s: float = 240.0) -> list[int]:
    """The most bytes that the first of `world` ranks held in each case, from its loading to its last update."""
    with _ranks(_peaks, cases, world) as found:
        return [found.get(timeout=deadline_s) for _ in cases]


def _peaks(cases: Sequence[Case], rank: int, world: int, port: int, found: Any) -> None:
    for number, case in enumerate(cases):
        worker = LearnerWorker(_setup(case), case.config, rank, world)
        if not number:
            worker.join(("127.0.0.1", port))
        with Storages() as held:
            worker.load_models()
            for model in (worker._engine.module, worker._reference):
                held.see(list(model.parameters()))
            for step in range(1, case.updates + 1):
                worker.score_reference([share.sequences for share in case.shares[rank]], 1.0)
                worker.update(case.shares[rank], step)
        if rank == 0:
            found.put(held.most)
        del worker
        gc.collect()


def _rank(cases: Sequence[Case], rank: int, world: int, port: int, found: Any) -> None:
    try:
        joined = False
        for case in cases:
            worker = LearnerWorker(_setup(case), case.config, rank, world)
            if not joined:
                worker.join(("127.0.0.1", port))
                joined = True
                gc.freeze()  # DeepSpeed has Python look at all objects at every start
            worker.load_models()
            answer = [(dict[str, float](), _weights(worker))]
            for step in range(1, case.updates + 1):
                answer.append(_updated(worker, case, rank, world, step))
                if case.kept and step == 1:
                    worker.save(case.kept)
            if case.kept:
                worker = LearnerWorker(_setup(case), case.config, rank, world)
                worker.load_models()
                worker.load(case.kept)
                answer += [_updated(worker, case, rank, world, step) for step in range(2, case.updates + 1)]
            if rank == 0:
                found.put(answer)
    except BaseException:
        found.put(f"rank {rank}: {traceback.format_exc()}")
        sys.exit(1)


def _updated(worker: LearnerWorker, case: Case, rank: int, world: int, step: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of an update, of all ranks, and the weights after it."""
    mine = worker.update(case.shares[rank], step)
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, mine)
    once = everyone[:: case.config.sequence_parallel]  # ranks that share their sequences say the same
    return {name: metric.value for name, metric in merge(once).items()}, _weights(worker)


def _weights(worker: LearnerWorker) -> dict[str, Any]:
    """As the optimizer has them: in float32."""
    named = worker._source.learned()
    if worker._setup.dtype == torch.float32:
        return {name: tensor.clone().numpy() for name, tensor in worker._source._gathered(named)}
    from deepspeed.utils import safe_get_full_fp32_param

    return {name: safe_get_full_fp32_param(parameter).clone().numpy() for name, parameter in named}


def _setup(case: Case) -> LearnerSetup:
    return LearnerSetup(
        folder=case.folder,
        dtype=case.dtype,
        device="cpu",
        threads=1,
        reference=True,
        temperature=1.0,
        total_steps=10,
        objective=OBJECTIVE,
        terms=terms(),
        sync_backend="shm",
        bucket_bytes=10_000,
        verify=True,
        deadline_s=60.0,
        stall_s=60.0,
        seed=1,
    )
