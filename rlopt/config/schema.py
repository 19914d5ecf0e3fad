"""The typed configuration. `conf/config.yaml` holds every default with a comment and a unit; here are types and checks.

Each section goes to the room that it is named after; nothing below `launch` sees a whole `Config`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlopt.core.errors import need

_STRICT = {"extra": "forbid", "strict": True}
"""For the reader in `settings`: no unknown key, no silent conversion."""


@dataclass(frozen=True)
class RunConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    name: str
    dir: str
    seed: int
    record: bool
    resume: str

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class ModelConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    path: str
    dtype: Literal["auto", "float32", "bfloat16"]

    def resolved_dtype(self, gpus: float) -> Literal["float32", "bfloat16"]:
        """`auto` decided, for a worker with `gpus` of them."""
        if self.dtype == "auto":
            return "bfloat16" if gpus else "float32"
        return self.dtype


@dataclass(frozen=True)
class DataConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    train: str
    eval: str | list[str] | None
    size: int
    experience: str | None
    experience_share: float
    prompts_per_step: int
    subset: str | None
    split: str
    eval_split: str
    prompt_key: str | None
    answer_key: str | None
    answer_format: Literal["auto", "text", "hash", "boxed"]
    max_prompt_tokens: int | None
    template: str | None
    chat: Literal["auto", "always", "never"]
    system: str | None
    invalid_rows: Literal["refuse", "drop"]

    def __post_init__(self) -> None:
        longest = self.max_prompt_tokens
        need(
            longest is None or longest >= 1,
            "data.max_prompt_tokens",
            longest,
            "must be at least 1; null: what the model has room for",
        )
        template = self.template
        need(template is None or "{prompt}" in template, "data.template", template, "has no {prompt}, where the prompt stands")
        need(self.prompts_per_step >= 1, "data.prompts_per_step", self.prompts_per_step, "must be at least 1")
        need(self.size >= 1, "data.size", self.size, "must be at least 1")
        share = self.experience_share
        need(0 < share <= 1, "data.experience_share", share, "must be above 0 and at most 1")
        need(
            self.experience is not None or share == 1,
            "data.experience_share",
            share,
            "nothing is recorded; set data.experience",
        )


@dataclass(frozen=True)
class RewardConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    fn: str | list[str]
    weights: list[float] | None
    timeout_s: float
    workers: int
    on_error: Literal["stop", "skip"]

    def __post_init__(self) -> None:
        count = 1 if isinstance(self.fn, str) else len(self.fn)
        need(count >= 1, "reward.fn", self.fn, "names no function")
        fits = self.weights is None or len(self.weights) == count
        need(fits, "reward.weights", self.weights, f"reward.fn names {count} function(s); give one weight for each")
        need(self.workers >= 1, "reward.workers", self.workers, "must be at least 1")
        need(self.timeout_s > 0, "reward.timeout_s", self.timeout_s, "must be above 0 seconds")


@dataclass(frozen=True)
class KLConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    coef: float
    estimator: Literal["k1", "k2", "k3", "abs", "k3_corrected", "k3_unbiased"]
    place: Literal["loss", "reward"]

    def __post_init__(self) -> None:
        need(0 <= self.coef < math.inf, "algo.kl.coef", self.coef, "must be 0 (measure only) or above")


@dataclass(frozen=True)
class CorrectionConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    weight: Literal["none", "token", "sequence"]
    cap: float | None
    mask: Literal["none", "token", "sequence", "geometric"]
    low: float
    high: float


@dataclass(frozen=True)
class OverlongConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    buffer: float
    filter: bool

    def __post_init__(self) -> None:
        need(0 <= self.buffer <= 1, "algo.overlong.buffer", self.buffer, "is a share of rollout.max_new_tokens: 0 to 1")


@dataclass(frozen=True)
class GroupRelativeConfig:
    """What objectives that learn from groups of samples have; `objectives.core.Terms` is made of it."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    group_size: int
    minibatches: int
    credit: str | None
    anchor: Literal["behavior", "proximal"]
    refills: int
    dual_clip: float | None
    opsm_delta: float | None
    entropy_coef: float
    kl: KLConfig
    correction: CorrectionConfig
    overlong: OverlongConfig

    def __post_init__(self) -> None:
        need(self.group_size >= 2, "algo.group_size", self.group_size, "credit is relative to siblings: at least 2")
        need(self.minibatches >= 1, "algo.minibatches", self.minibatches, "must be at least 1")
        need(self.refills >= 0, "algo.refills", self.refills, "must be 0 (off) or more")
        need(math.isfinite(self.entropy_coef), "algo.entropy_coef", self.entropy_coef, "must be a finite number")
        corrected = self.correction.weight != "none" or self.correction.mask != "none"
        need(
            self.anchor == "proximal" or not corrected,
            "algo.anchor",
            self.anchor,
            "algo.correction weighs the anchor against the behavior policy, which is 1 everywhere; set algo.anchor=proximal",
        )


@dataclass(frozen=True)
class AlgoConfig:
    """`options` are the fields of the class that `objective` names; `group_relative` is None where it learns from recorded
    rows."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    name: str
    objective: str
    group_relative: GroupRelativeConfig | None
    options: dict[str, Any]


@dataclass(frozen=True)
class RolloutConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    engines: int
    tensor_parallel: int
    temperature: float
    top_p: float
    max_new_tokens: int
    max_num_seqs: int
    kv_cache_gib: float
    gpu_memory_share: float
    sleep: bool

    def __post_init__(self) -> None:
        need(self.engines >= 1, "rollout.engines", self.engines, "must be at least 1")
        need(self.tensor_parallel >= 1, "rollout.tensor_parallel", self.tensor_parallel, "must be at least 1")
        need(self.temperature > 0, "rollout.temperature", self.temperature, "must be above 0: training needs chance")
        need(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "must be above 0 and at most 1")
        need(self.max_new_tokens >= 1, "rollout.max_new_tokens", self.max_new_tokens, "must be at least 1")
        need(self.max_num_seqs >= 1, "rollout.max_num_seqs", self.max_num_seqs, "must be at least 1")
        need(self.kv_cache_gib > 0, "rollout.kv_cache_gib", self.kv_cache_gib, "must be above 0 GiB")
        share = self.gpu_memory_share
        need(0 < share <= 1, "rollout.gpu_memory_share", share, "is a share of the card: above 0 and at most 1")


@dataclass(frozen=True)
class LoraConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    rank: int
    alpha: float
    targets: str | list[str]

    def __post_init__(self) -> None:
        need(self.rank >= 0, "learner.lora.rank", self.rank, "must be 0 (off: all weights learn) or more")
        for key, value, default in (("alpha", self.alpha, 32.0), ("targets", self.targets, "all-linear")):
            vain = not self.rank and value != default
            need(not vain, f"learner.lora.{key}", value, "means nothing without learner.lora.rank; set that too")
        need(self.alpha > 0, "learner.lora.alpha", self.alpha, "must be above 0")
        named = self.targets == "all-linear" or (isinstance(self.targets, list) and self.targets)
        need(
            bool(named),
            "learner.lora.targets",
            self.targets,
            "give all-linear, or a list of layer names such as [q_proj,v_proj]",
        )


@dataclass(frozen=True)
class LearnerConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    workers: int
    zero_stage: Literal[0, 1, 2, 3]
    lr: float
    lr_schedule: Literal["constant", "linear", "cosine"]
    betas: list[float]
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    token_budget: int
    logit_chunk: int
    gradient_checkpointing: bool
    lora: LoraConfig

    def __post_init__(self) -> None:
        need(self.workers >= 1, "learner.workers", self.workers, "must be at least 1")
        need(0 < self.lr < math.inf, "learner.lr", self.lr, "must be above 0")
        need(0 <= self.weight_decay < math.inf, "learner.weight_decay", self.weight_decay, "must be 0 (off) or above")
        need(self.warmup_steps >= 0, "learner.warmup_steps", self.warmup_steps, "must be 0 (off) or more")
        need(self.max_grad_norm > 0, "learner.max_grad_norm", self.max_grad_norm, "must be above 0")
        need(self.logit_chunk >= 1, "learner.logit_chunk", self.logit_chunk, "must be at least 1 token")
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        need(fits, "learner.betas", self.betas, "AdamW has two, at least 0 and below 1, e.g. [0.9, 0.999]")


@dataclass(frozen=True)
class SyncConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    mode: Literal["lockstep", "async"]
    interval: int
    offset: int
    max_lag: int | None
    in_flight: Literal["keep", "abort", "wait"]
    stale: Literal["wait", "drop"]
    backend: Literal["auto", "shm", "nccl", "ipc"]
    bucket_mib: int
    verify: bool
    tolerance: float

    def __post_init__(self) -> None:
        need(self.interval >= 1, "sync.interval", self.interval, "must be at least 1 learner step")
        need(self.offset >= 0, "sync.offset", self.offset, "must be 0 or more batches")
        need(self.bucket_mib >= 1, "sync.bucket_mib", self.bucket_mib, "must be at least 1 MiB")
        if self.mode == "async":
            need(self.max_lag is not None, "sync.max_lag", self.max_lag, "sync.mode=async needs a bound, e.g. sync.max_lag=8")
            need(
                self.offset == 0,
                "sync.offset",
                self.offset,
                "is of sync.mode=lockstep; sync.max_lag says how far samplers run ahead",
            )
        else:
            for key, value, default in (("in_flight", self.in_flight, "keep"), ("stale", self.stale, "wait")):
                need(value == default, f"sync.{key}", value, "is of sync.mode=async; leave it out")
        worst = self.offset + self.interval - 1
        need(
            self.max_lag is None or self.max_lag >= worst,
            "sync.max_lag",
            self.max_lag,
            f"sync.interval={self.interval} and sync.offset={self.offset} reach lag {worst}; raise it, or lower those",
        )


@dataclass(frozen=True)
class ReplayConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    capacity: int
    share: float
    reuse: int
    decay: float

    def __post_init__(self) -> None:
        need(self.capacity >= 0, "replay.capacity", self.capacity, "must be 0 (off) or more groups")
        need(0 < self.share < 1, "replay.share", self.share, "must be above 0 and below 1: something must be new")
        need(self.reuse >= 2, "replay.reuse", self.reuse, "counts the first time too: at least 2")
        need(self.decay >= 0, "replay.decay", self.decay, "must be 0 or above")
        need(
            self.share <= (self.reuse - 1) / self.reuse,
            "replay.share",
            self.share,
            f"groups learned from replay.reuse={self.reuse} times fill {1 - 1 / self.reuse:.2f} of a step at most",
        )


@dataclass(frozen=True)
class TrainerConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    total_steps: int
    dry_run: bool
    eval_every: int
    save_every: int
    keep_checkpoints: int
    best: str | None
    log_samples: int

    def __post_init__(self) -> None:
        need(self.total_steps >= 1, "trainer.total_steps", self.total_steps, "must be at least 1")
        need(self.eval_every >= 1, "trainer.eval_every", self.eval_every, "must be at least 1 step")
        need(self.save_every >= 0, "trainer.save_every", self.save_every, "must be 0 (only at the end) or more steps")
        need(self.keep_checkpoints >= 1, "trainer.keep_checkpoints", self.keep_checkpoints, "must be at least 1")


@dataclass(frozen=True)
class EvalConfig:
    """How held-out prompts are answered and counted, by `rlopt.evaluate` and between learner steps."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    samples: int
    temperature: float
    top_p: float
    greedy: bool
    limit: int | None
    right: float

    def __post_init__(self) -> None:
        need(self.samples >= 0, "eval.samples", self.samples, "must be 0 (greedy alone) or more answers per prompt")
        need(self.samples >= 1 or self.greedy, "eval.greedy", self.greedy, "with eval.samples=0 nothing is answered; set one")
        need(self.temperature > 0, "eval.temperature", self.temperature, "must be above 0; eval.greedy=true answers greedily")
        need(0 < self.top_p <= 1, "eval.top_p", self.top_p, "must be above 0 and at most 1")
        need(self.limit is None or self.limit >= 1, "eval.limit", self.limit, "must be at least 1 prompt; null takes all")


@dataclass(frozen=True)
class TrackingConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    wandb: Literal["auto", "online", "offline", "disabled"]
    tensorboard: bool
    project: str
    group: str | None


@dataclass(frozen=True)
class ClusterConfig:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    address: str
    cpu_threads: int
    gpus_per_engine: float
    gpus_per_learner: float
    start_deadline_s: float
    step_deadline_s: float

    def __post_init__(self) -> None:
        need(self.cpu_threads >= 1, "cluster.cpu_threads", self.cpu_threads, "must be at least 1")
        for key, gpus in (("engine", self.gpus_per_engine), ("learner", self.gpus_per_learner)):
            fits = 0 <= gpus < 1 or (gpus >= 1 and gpus == int(gpus))
            need(fits, f"cluster.gpus_per_{key}", gpus, "must be 0, a share of one GPU, or a whole number of them")
        for key, seconds in (("start", self.start_deadline_s), ("step", self.step_deadline_s)):
            need(seconds > 0, f"cluster.{key}_deadline_s", seconds, "must be above 0 seconds")


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _STRICT
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    algo: AlgoConfig
    rollout: RolloutConfig
    learner: LearnerConfig
    sync: SyncConfig
    replay: ReplayConfig
    trainer: TrainerConfig
    eval: EvalConfig
    tracking: TrackingConfig
    cluster: ClusterConfig

    def __post_init__(self) -> None:
        self._check_shares()
        rows = self.algo.group_relative is None and isinstance(self.data.eval, list)
        need(not rows, "data.eval", self.data.eval, "recorded rows are held out in one file; give one")
        best = self.trainer.best
        need(best is None or self.data.eval is not None, "trainer.best", best, "nothing is evaluated; set data.eval")
        updates = self.algo.group_relative.minibatches if self.algo.group_relative else 1
        need(
            updates <= self.data.prompts_per_step,
            "algo.minibatches",
            updates,
            f"a step has data.prompts_per_step={self.data.prompts_per_step} groups to share out; use at most that",
        )
        need(
            self.learner.zero_stage > 0 or self.model.resolved_dtype(self.cluster.gpus_per_learner) == "float32",
            "learner.zero_stage",
            self.learner.zero_stage,
            "adds bfloat16 gradients up in bfloat16, and its first update is too small; use 1, which costs one rank nothing",
        )
        need(
            self.sync.backend in ("auto", "shm") or self.cluster.gpus_per_engine > 0,
            "sync.backend",
            self.sync.backend,
            "needs engines on GPUs; set cluster.gpus_per_engine, or sync.backend=auto",
        )
        need(
            not self.rollout.sleep or (self.samples and self.sync.mode == "lockstep"),
            "rollout.sleep",
            self.rollout.sleep,
            "needs engines that stand still between two synchronisations (sync.mode=lockstep); set rollout.sleep=false",
        )
        need(
            self.sync.backend in ("auto", "shm") or not self.learner.lora.rank,
            "sync.backend",
            self.sync.backend,
            "adapters (learner.lora) travel through shared memory; leave it out",
        )

    def _check_shares(self) -> None:
        steps, lag = self.data.prompts_per_step, self.sync.max_lag
        if self.data.experience:
            share = self.data.experience_share
            need(self.shares[2] >= 1, "data.experience_share", share, f"is no group of data.prompts_per_step={steps}; raise it")
            need(
                lag is None or lag >= self.trainer.total_steps - 1,
                "sync.max_lag",
                lag,
                f"recorded groups stand still: their lag reaches {self.trainer.total_steps - 1}; set it to that, or in "
                "sync.mode=lockstep to null, or leave data.experience out",
            )
        if self.replay.capacity:
            need(
                self.shares[0] + self.shares[1] > 0,
                "replay.capacity",
                self.replay.capacity,
                "nothing new is sampled; leave it out",
            )
            need(
                self.shares[1] >= 1,
                "replay.share",
                self.replay.share,
                f"is no group of data.prompts_per_step={steps}; raise it",
            )
            need(
                self.replay.capacity >= self.shares[1],
                "replay.capacity",
                self.replay.capacity,
                f"a step draws {self.shares[1]} groups; raise it to that at least",
            )
        need(self.shares[0] >= 1 or not self.samples, "data.prompts_per_step", steps, "leaves no group to be sampled; raise it")

    @property
    def samples(self) -> bool:
        """Whether there are samplers."""
        return self.algo.group_relative is not None and not (self.data.experience and self.data.experience_share == 1)

    @property
    def shares(self) -> tuple[int, int, int]:
        """Groups (or rows) of a step: sampled, replayed, recorded."""
        steps = self.data.prompts_per_step
        recorded = round(self.data.experience_share * steps) if self.data.experience else 0
        replayed = round(self.replay.share * (steps - recorded)) if self.replay.capacity else 0
        return steps - recorded - replayed, replayed, recorded

    @property
    def group_size(self) -> int:
        """Samples per prompt; 1 where rows are recorded."""
        return self.algo.group_relative.group_size if self.algo.group_relative else 1

    @property
    def samples_per_step(self) -> int:
        return self.data.prompts_per_step * self.group_size

    @property
    def sync_backend(self) -> Literal["shm", "nccl", "ipc"]:
        """`auto` decided: shared memory without GPUs or for adapters, IPC where engine and learner share one, else NCCL."""
        if self.sync.backend != "auto":
            return self.sync.backend
        if not self.cluster.gpus_per_engine or self.learner.lora.rank:
            return "shm"
        return "ipc" if self.cluster.gpus_per_engine < 1 else "nccl"


def check_seed(seed: int) -> None:
    need(0 <= seed < 2**32, "run.seed", seed, "must be 0 to 4294967295")
