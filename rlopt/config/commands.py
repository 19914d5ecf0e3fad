"""The typed configurations of `rlopt.evaluate` and `rlopt.pairs`."""

from typing import Annotated

from pydantic import Field

from rlopt.config.bounds import AtLeastOne, Seed
from rlopt.config.environments import EnvConfig
from rlopt.config.schema import check_whole_cards
from rlopt.config.sections import (
    ClusterConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    section,
)
from rlopt.core.errors import need


@section
class SeedConfig:
    """The section `run` of a command that makes no run."""

    seed: Seed


@section
class EvaluateConfig:
    run: str | None
    checkpoint: str | int
    out: str | None
    rounds: AtLeastOne


@section
class EvaluateJob:
    """Everything that `rlopt.evaluate` depends on: its own section, and those of `Config` that it shares."""

    evaluate: EvaluateConfig
    eval: EvalConfig
    run: SeedConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    env: EnvConfig
    rollout: RolloutConfig
    cluster: ClusterConfig

    def __post_init__(self) -> None:
        need(bool(self.data.eval), "data.eval", self.data.eval, "names nothing to evaluate on; give a data set, or a list")
        check_no_learner(self.cluster, self.rollout)


@section
class PairsConfig:
    out: Annotated[str, Field(pattern=r"\.jsonl$", description="must end with .jsonl; the eval rows go to .eval.jsonl")]
    count: Annotated[int, Field(ge=1, description="must be at least 1 row")]
    attempts: Annotated[int, Field(ge=1, description="must be at least 1 answer per prompt")]
    continuations: Annotated[int, Field(ge=1, description="must be at least 1 per wrong answer")]
    right: float
    split: str
    locate: str
    chunk: Annotated[int, Field(ge=1, description="must be at least 1 prompt")]
    eval_share: Annotated[float, Field(ge=0, lt=1, description="must be at least 0 and below 1")]


@section
class PairsJob:
    """Everything that `rlopt.pairs` depends on: its own section, and those of `Config` that it shares."""

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
    """Refuse keys that have no effect in a command without a learner."""
    check_whole_cards(rollout, cluster)
    ranks = cluster.gpus_per_learner
    need(ranks == 0, "cluster.gpus_per_learner", ranks, "there is no learner here; leave it out")
    need(not rollout.sleep, "rollout.sleep", rollout.sleep, "there is no learner here to make room for; leave it out")
