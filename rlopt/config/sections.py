"""The sections of the configuration, typed, one for each part of rlopt. `conf/config.yaml` has every default, unit and meaning.

Rules between keys of one section stand in `__post_init__`, rules between sections in `schema.Config`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import Field

from rlopt.config.bounds import AtLeastOne, AutoOrCount, Gpus, OffOrMore, Seconds, Seed, Share
from rlopt.config.passthrough import check_handed_over
from rlopt.core.errors import need

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def section(kind: type[T]) -> type[T]:
    """Make a class a frozen dataclass that `compose.read` reads strictly: no unknown key, no silent conversion, no text that is
    empty, as a shell makes it of a variable that is not set.
    """
    kind.__pydantic_config__ = {"extra": "forbid", "strict": True, "str_min_length": 1}  # type: ignore[attr-defined]
    return dataclass(frozen=True)(kind)


@section
class RunConfig:
    name: str
    dir: str
    seed: Seed
    record: bool
    resume: str


@section
class ModelConfig:
    path: str
    dtype: Literal["auto", "float32", "bfloat16"]

    def resolved_dtype(self, gpus: float) -> Literal["float32", "bfloat16"]:
        """`auto` decided, for a worker with `gpus` of them."""
        if self.dtype == "auto":
            return "bfloat16" if gpus else "float32"
        return self.dtype


@section
class DataConfig:
    train: str
    eval: str | list[str] | None
    size: AtLeastOne
    experience: str | None
    experience_share: Share
    prompts_per_step: AtLeastOne
    subset: str | None
    split: str
    eval_split: str
    prompt_key: str | None
    answer_key: str | None
    answer_format: Literal["auto", "text", "hash", "boxed"]
    max_prompt_tokens: Annotated[int | None, Field(ge=1, description="must be at least 1; null: what the model has room for")]
    template: Annotated[str | None, Field(pattern=r"\{prompt\}", description="has no {prompt}, which the prompt replaces")]
    chat: Literal["auto", "always", "never"]
    system: str | None
    invalid_rows: Literal["refuse", "drop"]

    def __post_init__(self) -> None:
        fits = self.experience is not None or self.experience_share == 1
        need(fits, "data.experience_share", self.experience_share, "nothing is recorded; set data.experience")


@section
class RewardConfig:
    fn: str | Annotated[list[str], Field(min_length=1, description="names no function")]
    weights: list[float] | None
    timeout_s: Seconds
    workers: AtLeastOne
    on_error: Literal["stop", "skip"]

    def __post_init__(self) -> None:
        count = 1 if isinstance(self.fn, str) else len(self.fn)
        fits = self.weights is None or len(self.weights) == count
        need(fits, "reward.weights", self.weights, f"reward.fn names {count} function(s); give one weight for each")


@section
class KLConfig:
    coef: Annotated[float, Field(ge=0, allow_inf_nan=False, description="must be 0 (measure only) or above")]
    estimator: Literal["k1", "k2", "k3", "abs", "k3_corrected", "k3_unbiased"]
    place: Literal["loss", "reward"]
    every: OffOrMore

    def __post_init__(self) -> None:
        way_out = f"algo.kl.coef={self.coef} needs KL at every step; leave it out, or set algo.kl.coef=0"
        need(self.every == 1 or not self.coef, "algo.kl.every", self.every, way_out)


@section
class CorrectionConfig:
    weight: Literal["none", "token", "sequence"]
    cap: float | None
    mask: Literal["none", "token", "sequence", "geometric"]
    low: float
    high: float


@section
class OverlongConfig:
    buffer: Annotated[float, Field(ge=0, le=1, description="is a share of rollout.max_new_tokens: 0 to 1")]
    filter: bool


@section
class GroupRelativeConfig:
    """What objectives that learn from groups of samples have; `objectives.core.LossTerms` is made of it."""

    group_size: Annotated[int, Field(ge=2, description="advantages are relative to the group: at least 2")]
    minibatches: AtLeastOne
    advantages: str | None
    old_logprobs: Literal["behavior", "proximal"]
    refills: OffOrMore
    dual_clip: float | None
    opsm_delta: float | None
    entropy_coef: Annotated[float, Field(allow_inf_nan=False, description="must be a finite number")]
    kl: KLConfig
    correction: CorrectionConfig
    overlong: OverlongConfig

    def __post_init__(self) -> None:
        corrected = self.correction.weight != "none" or self.correction.mask != "none"
        need(
            self.old_logprobs == "proximal" or not corrected,
            "algo.old_logprobs",
            self.old_logprobs,
            "algo.correction weighs the old policy against the one that sampled: 1 everywhere; set algo.old_logprobs=proximal",
        )


@section
class AlgoConfig:
    """`options` are the fields of the class that `objective` names; `group_relative` is None where it learns from recorded
    rows."""

    name: str
    objective: str
    group_relative: GroupRelativeConfig | None
    options: dict[str, Any]


@section
class RolloutConfig:
    engines: AtLeastOne
    tensor_parallel: AtLeastOne
    temperature: Annotated[float, Field(gt=0, description="must be above 0: training needs chance")]
    top_p: Share
    max_new_tokens: AtLeastOne
    max_num_seqs: AtLeastOne
    kv_cache_gib: Annotated[float, Field(gt=0, description="must be above 0 GiB")]
    gpu_memory_share: Annotated[float, Field(gt=0, le=1, description="is a share of the card: above 0 and at most 1")]
    sleep: bool
    stall_s: Seconds
    vllm: dict[str, Any]

    def __post_init__(self) -> None:
        check_handed_over("rollout.vllm", self.vllm)


@section
class SyncConfig:
    mode: Literal["lockstep", "async"]
    interval: Annotated[int, Field(ge=1, description="must be at least 1 learner step")]
    offset: Annotated[int, Field(ge=0, description="must be 0 or more batches")]
    max_lag: int | None
    in_flight: Literal["keep", "abort", "wait"]
    stale: Literal["wait", "drop"]
    backend: Literal["auto", "shm", "nccl", "ipc"]
    bucket_mib: Annotated[int, Field(ge=1, description="must be at least 1 MiB")]
    verify: bool
    tolerance: float

    def __post_init__(self) -> None:
        if self.mode == "async":
            need(self.max_lag is not None, "sync.max_lag", self.max_lag, "sync.mode=async needs a bound, e.g. sync.max_lag=8")
            way_out = "is of sync.mode=lockstep; sync.max_lag says how far samplers run ahead"
            need(self.offset == 0, "sync.offset", self.offset, way_out)
        else:
            for key, value, default in (("in_flight", self.in_flight, "keep"), ("stale", self.stale, "wait")):
                need(value == default, f"sync.{key}", value, "is of sync.mode=async; leave it out")
        worst = self.offset + self.interval - 1
        way_out = f"sync.interval={self.interval} and sync.offset={self.offset} reach lag {worst}; raise it, or lower those"
        need(self.max_lag is None or self.max_lag >= worst, "sync.max_lag", self.max_lag, way_out)


@section
class ReplayConfig:
    capacity: Annotated[int, Field(ge=0, description="must be 0 (off) or more groups")]
    share: Annotated[float, Field(gt=0, lt=1, description="must be above 0 and below 1: something must be new")]
    reuse: Annotated[int, Field(ge=2, description="counts the first time too: at least 2")]
    decay: Annotated[float, Field(ge=0, description="must be 0 or above")]

    def __post_init__(self) -> None:
        most = (self.reuse - 1) / self.reuse
        way_out = f"groups learned from replay.reuse={self.reuse} times fill {most:.2f} of a step at most"
        need(self.share <= most, "replay.share", self.share, way_out)


@section
class TrainerConfig:
    total_steps: AtLeastOne
    dry_run: bool
    eval_every: Annotated[int, Field(ge=1, description="must be at least 1 step")]
    save_every: Annotated[int, Field(ge=0, description="must be 0 (only at the end) or more steps")]
    keep_checkpoints: AtLeastOne
    best: str | None
    restarts: OffOrMore
    on_disk_full: Literal["end", "pause"]
    log_samples: int


@section
class EvalConfig:
    """How held-out prompts are answered and counted, by `rlopt.evaluate` and between learner steps."""

    samples: Annotated[int, Field(ge=0, description="must be 0 (greedy alone) or more answers per prompt")]
    temperature: Annotated[float, Field(gt=0, description="must be above 0; eval.greedy=true answers greedily")]
    top_p: Share
    greedy: bool
    limit: Annotated[int | None, Field(ge=1, description="must be at least 1 prompt; null takes all")]
    right: float

    def __post_init__(self) -> None:
        need(self.samples >= 1 or self.greedy, "eval.greedy", self.greedy, "with eval.samples=0 nothing is answered; set one")


@section
class TrackingConfig:
    wandb: Literal["auto", "online", "offline", "disabled"]
    tensorboard: bool
    project: str
    group: str | None


@section
class ClusterConfig:
    address: str
    cpu_threads: AutoOrCount
    gpus_per_engine: Gpus
    gpus_per_learner: Gpus
    start_deadline_s: Seconds
    step_deadline_s: Seconds

    def __post_init__(self) -> None:
        way_out = "a rank computes on one GPU; set it to 1, and have more ranks (learner.workers)"
        need(self.gpus_per_learner <= 1, "cluster.gpus_per_learner", self.gpus_per_learner, way_out)
