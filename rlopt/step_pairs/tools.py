"""The engines and the user's functions that `rlopt.pairs` calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlopt.cluster.actors import Workers
from rlopt.cluster.placement import Demand
from rlopt.cluster.ray_cluster import Cluster
from rlopt.config.commands import PairsJob
from rlopt.core.errors import Fault
from rlopt.core.requests import Answer, Continuation
from rlopt.core.samples import Prompt, Reference
from rlopt.core.sandbox import Pool
from rlopt.rewards.pool import Scored
from rlopt.rollout.vllm_engine import EngineConfig
from rlopt.rollout.worker import spawner
from rlopt.step_pairs.mining import check_place, check_steps

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The model and prompts that answers are sampled from, checked."""

    folder: Path
    tokenizer: Any
    prompts: list[Prompt]
    longest: int


@dataclass(frozen=True)
class SplitCall:
    completion: str


@dataclass(frozen=True)
class LocateCall:
    prompt: str
    steps: list[str]
    answer: Reference


class PairTools:
    """`mining.Tools` with real engines, the reward function beside them, and the user's functions in processes here."""

    def __init__(self, job: PairsJob, source: Source) -> None:
        self._job, self._source = job, source
        self._open: list[Pool | Workers] = []
        self._cluster = Cluster(job.cluster)

    def start(self) -> None:
        """Start everything; returns when the engines answer."""
        job = self._job
        engine = EngineConfig.without_learner(
            self._source.folder, job.model, job.cluster, job.rollout.engines, self._source.longest, job.run.seed
        )
        self._cluster.reserve(Demand.of(job.cluster, job.rollout, job.rollout.engines, learners=0))
        spawn = spawner(self._cluster, job.cluster, engine, job.rollout, job.reward, job.pairs.attempts)
        engines = spawn("engine", job.rollout.engines)
        self._open.append(engines)
        self._sampler = Sampler(engines)
        starting = engines.start("start", deadline_s=job.cluster.start_deadline_s)
        self._split = self._pool("pairs.split", job.pairs.split)
        self._locate = self._pool("pairs.locate", job.pairs.locate)
        starting.result("starting up")

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        return self._sampler.complete(openings, count)

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[float | None]:
        return [one.reward if isinstance(one, Scored) else None for one in self._sampler.grade(answers)]

    def split(self, texts: list[str]) -> list[list[str]]:
        found = self._split.call_each([SplitCall(text) for text in texts])
        return [check_steps(self._job.pairs.split, text, steps) for text, steps in zip(texts, found, strict=True)]

    def locate(self, answers: list[tuple[Prompt, list[str]]]) -> list[int | None]:
        found = self._locate.call_each([LocateCall(prompt.text, steps, prompt.answer) for prompt, steps in answers])
        return [check_place(self._job.pairs.locate, steps, at) for (_, steps), at in zip(answers, found, strict=True)]

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._source.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def close(self) -> None:
        for one in self._open:
            one.close()
        self._cluster.close()

    def _pool(self, key: str, name: str) -> Pool:
        pool = Pool(key, name, self._job.reward.workers, self._job.reward.timeout_s)
        self._open.append(pool)
        return pool


class Sampler:
    """All engines, as a command that samples without learning sees them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        """`count` answers that continue each opening; the same ones whichever engine samples them."""
        shares = _deal(openings, len(self._workers))
        return _gather(self._workers.start("complete", *([share, count] for share in shares)).result("sampling answers"))

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[Scored | Fault | None]:
        """The reward of each text, from the reward processes beside the engines; None where it leaves an answer out."""
        shares = _deal(answers, len(self._workers))
        return _gather(self._workers.start("grade", *([share] for share in shares)).result("grading answers"))


def _deal(items: list[T], count: int) -> list[list[T]]:
    """The items split over `count` workers, in turn."""
    return [items[i::count] for i in range(count)]


def _gather(shares: list[list[T]]) -> list[T]:
    """What `_deal` split, in its first order."""
    width = len(shares)
    return [shares[i % width][i // width] for i in range(sum(map(len, shares)))]
