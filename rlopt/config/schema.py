"""The whole configuration of a training run: its sections, the rules between them, and what follows from several.

Each section goes to the package that it is named after; nothing below `run` sees a whole `Config`.
"""

from typing import Literal

from rlopt.config.environments import EnvConfig
from rlopt.config.learners import LearnerConfig
from rlopt.config.sections import (
    AlgoConfig,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ReplayConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SyncConfig,
    TrackingConfig,
    TrainerConfig,
    section,
)
from rlopt.core.errors import need


@section
class Config:
    """Everything that a run depends on."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    env: EnvConfig
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
        check_whole_cards(self.rollout, self.cluster)
        self._check_shared_cards()
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
            "needs engines that are idle between two synchronizations (sync.mode=lockstep); set rollout.sleep=false",
        )
        need(
            self.sync.backend in ("auto", "shm") or not self.learner.lora.rank,
            "sync.backend",
            self.sync.backend,
            "adapters (learner.lora) travel through shared memory; leave it out",
        )

    def _check_shared_cards(self) -> None:
        """An engine that has a share of a card gets weights from the learner rank that has the rest of it."""
        engine, learner = self.cluster.gpus_per_engine, self.cluster.gpus_per_learner
        if not (self.samples and 0 < engine < 1):
            return
        fits = 0 < learner <= 1 - engine + 1e-9
        way_out = f"shares a card with a learner rank, which has {learner}; make it 1 in all, such as 0.4 and 0.6"
        need(fits, "cluster.gpus_per_engine", engine, way_out)
        engines, ranks = self.rollout.engines, self.learner.workers
        way_out = f"share cards with learner ranks, of which there are {ranks}; use at most that, or whole cards for engines"
        need(engines <= ranks, "rollout.engines", engines, way_out)

    def _check_shares(self) -> None:
        steps, lag = self.data.prompts_per_step, self.sync.max_lag
        if self.data.experience:
            share = self.data.experience_share
            need(
                self.shares[2] >= 1,
                "data.experience_share",
                share,
                f"rounds to 0 groups of data.prompts_per_step={steps}; raise it",
            )
            need(
                lag is None or lag >= self.trainer.total_steps - 1,
                "sync.max_lag",
                lag,
                f"recorded groups are never sampled anew: their lag reaches {self.trainer.total_steps - 1}; set it to that, "
                "or in sync.mode=lockstep to null, or leave data.experience out",
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
                f"rounds to 0 groups of data.prompts_per_step={steps}; raise it",
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
    def waits_for_room(self) -> bool:
        """Whether a full disk pauses what is written, rather than to end the run."""
        return self.trainer.on_disk_full == "pause"

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


def check_whole_cards(rollout: RolloutConfig, cluster: ClusterConfig) -> None:
    """Refuse an engine of several ranks on shares of cards: Ray would give it one card."""
    gpus = cluster.gpus_per_engine
    need(
        rollout.tensor_parallel == 1 or gpus in (0, 1),
        "cluster.gpus_per_engine",
        gpus,
        f"each of the rollout.tensor_parallel={rollout.tensor_parallel} ranks of an engine needs one whole GPU; set it to 1",
    )
