"""The typed configurations of `rlopt.evaluate` and `rlopt.pairs`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from rlopt.config.sections import (
    STRICT,
    AtLeastOne,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    Seed,
)
from rlopt.core.errors import need


@dataclass(frozen=True)
class SeedConfig:
    """The section `run` of a command that makes no run."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    seed: Seed


@dataclass(frozen=True)
class EvaluateConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    run: str | None
    checkpoint: str | int
    out: str | None
    rounds: AtLeastOne


@dataclass(frozen=True)
class EvaluateJob:
    """Everything that `rlopt.evaluate` depends on: its own section, and those of `Config` that it shares."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
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
    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    out: Annotated[str, Field(pattern=r"\.jsonl$", description="must end with .jsonl; the eval rows go to .eval.jsonl")]
    count: Annotated[int, Field(ge=1, description="must be at least 1 row")]
    attempts: Annotated[int, Field(ge=1, description="must be at least 1 answer per prompt")]
    continuations: Annotated[int, Field(ge=1, description="must be at least 1 per wrong answer")]
    right: float
    split: str
    locate: str
    chunk: Annotated[int, Field(ge=1, description="must be at least 1 prompt")]
    eval_share: Annotated[float, Field(ge=0, lt=1, description="must be at least 0 and below 1")]


@dataclass(frozen=True)
class PairsJob:
    """Everything that `rlopt.pairs` depends on: its own section, and those of `Config` that it shares."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
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
