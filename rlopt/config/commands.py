"""The typed configurations of `rlopt.evaluate` and `rlopt.pairs`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlopt.config.schema import (
    _STRICT,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    check_seed,
)
from rlopt.core.errors import need


@dataclass(frozen=True)
class SeedConfig:
    """The section `run` of a command that makes no run."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    seed: int

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class EvaluateConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    run: str | None
    checkpoint: str | int
    out: str | None
    rounds: int

    def __post_init__(self) -> None:
        need(self.rounds >= 1, "evaluate.rounds", self.rounds, "must be at least 1")


@dataclass(frozen=True)
class EvaluateJob:
    """Everything that `rlopt.evaluate` depends on: its own section, and those of `Config` that it shares."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    evaluate: EvaluateConfig
    eval: EvalConfig
    run: SeedConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    rollout: RolloutConfig
    cluster: ClusterConfig

    def __post_init__(self) -> None:
        need(bool(self.data.eval), "data.eval", self.data.eval, "names nothing to evaluate on; give a data set, or a list")
        check_no_learner(self.cluster, self.rollout)


@dataclass(frozen=True)
class PairsConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    out: str
    count: int
    attempts: int
    continuations: int
    right: float
    split: str
    locate: str
    chunk: int
    eval_share: float

    def __post_init__(self) -> None:
        need(self.out.endswith(".jsonl"), "pairs.out", self.out, "must end with .jsonl; the eval rows go to .eval.jsonl")
        need(self.count >= 1, "pairs.count", self.count, "must be at least 1 row")
        need(self.attempts >= 1, "pairs.attempts", self.attempts, "must be at least 1 answer per prompt")
        need(self.continuations >= 1, "pairs.continuations", self.continuations, "must be at least 1 per wrong answer")
        need(self.chunk >= 1, "pairs.chunk", self.chunk, "must be at least 1 prompt")
        need(0 <= self.eval_share < 1, "pairs.eval_share", self.eval_share, "must be at least 0 and below 1")


@dataclass(frozen=True)
class PairsJob:
    """Everything that `rlopt.pairs` depends on: its own section, and those of `Config` that it shares."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    pairs: PairsConfig
    run: SeedConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    rollout: RolloutConfig
    cluster: ClusterConfig

    def __post_init__(self) -> None:
        data, steps = self.data, self.data.prompts_per_step
        need(steps == self.pairs.chunk, "data.prompts_per_step", steps, "there are no learner steps here; set pairs.chunk")
        need(data.eval is None, "data.eval", data.eval, "nothing is scored here; pairs.eval_share holds rows out")
        check_no_learner(self.cluster, self.rollout)


def check_no_learner(cluster: ClusterConfig, rollout: RolloutConfig) -> None:
    """Refuse what a command without a learner would not heed."""
    ranks = cluster.gpus_per_learner
    need(ranks == 0, "cluster.gpus_per_learner", ranks, "there is no learner here; leave it out")
    need(not rollout.sleep, "rollout.sleep", rollout.sleep, "there is no learner here to make room for; leave it out")
