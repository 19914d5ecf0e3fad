"""Starting the engines and the learner ranks of a run."""

from collections.abc import Callable
from typing import Any

from rlopt.cluster.actors import Pending, Workers, close_all
from rlopt.cluster.environment import environment
from rlopt.cluster.placement import Demand
from rlopt.cluster.ray_cluster import Cluster
from rlopt.core.samples import PendingRollouts
from rlopt.core.supervisor import Supervisor
from rlopt.learner.group import Learners
from rlopt.learner.worker import LearnerSetup, LearnerWorker
from rlopt.rollout.engine_pool import EnginePool
from rlopt.rollout.vllm_engine import EngineConfig
from rlopt.rollout.worker import spawner
from rlopt.run import checkpoint
from rlopt.run.validate import Prepared


class RunWorkers:
    """The cluster and all workers of a run: learner ranks, and engines where there is something to sample."""

    def __init__(self, prepared: Prepared, supervisor: Supervisor | None = None) -> None:
        self._prepared = prepared
        self._supervisor = supervisor or Supervisor(prepared.config.rollout.engines)
        self._ranks: Workers | None = None
        self._loading: Pending | None = None
        self._learners: Learners | None = None
        self.engines: EnginePool | None = None
        self._cluster = Cluster(prepared.config.cluster)
        self.pending = PendingRollouts({}, {})

    def start(self) -> None:
        """Start loading engines and learners, in parallel; `join` waits for them."""
        config, deadline = self._prepared.config, self._prepared.config.cluster.start_deadline_s
        self._cluster.reserve(_demand(self._prepared))
        if self._prepared.data.prompts:
            spawn, rollout = _spawner(self._prepared, self._cluster), config.rollout
            self.engines = EnginePool(spawn, rollout.engines, deadline, rollout.stall_s, self._supervisor)
        self._ranks = _start_learners(self._prepared, self._cluster)
        meeting = self._ranks.call("address")[0]
        self._loading = self._ranks.start("start", *[[meeting]] * config.learner.workers, deadline_s=deadline)

    def join(self) -> None:
        """Wait until all have loaded, and load the checkpoint."""
        config = self._prepared.config
        assert self._ranks, "join comes after start"
        assert self._loading, "join comes after start"
        if self.engines:
            self.engines.join_all()
        self._loading.result("starting up")
        unit = self._prepared.objective.traits.unit
        self._learners = Learners(self._ranks, config.learner, unit, config.rollout.temperature)
        self.learners.check_storage(self._prepared.start.run)
        self.bring_back(self._prepared)

    @property
    def learners(self) -> Learners:
        """The learner ranks, once `join` has returned."""
        assert self._learners, "there are no learners before join"
        return self._learners

    def bring_back(self, prepared: Prepared) -> None:
        """Load the checkpoint that `prepared` resumes from, if any."""
        self.pending = PendingRollouts({}, {})
        if not prepared.start.resume:
            return
        self.learners.load(prepared.start.resume)
        self.pending = checkpoint.load_pending(prepared.start.resume)
        if prepared.start.left_behind:  # continue at the same place in the data, with the current weights
            step = prepared.start.state["position"]["step"]
            stream = {"keys": [], "again": [], "next": step * prepared.config.shares[0]}
            self.pending = PendingRollouts({}, {"revived": [step], "stream": stream})

    def nodes(self) -> dict[str, Any]:
        """The Ray node of every worker."""
        assert self._ranks
        return {"learners": self._ranks.nodes(), "engines": self.engines.nodes if self.engines else {}}

    def close(self) -> None:
        """End all of them, and our own cluster."""
        if not self._cluster.fault:
            close_all([*(self.engines.workers if self.engines else []), *([self._ranks] if self._ranks else [])])
        self._cluster.close()


def _spawner(prepared: Prepared, cluster: Cluster) -> Callable[[str, int], Workers]:
    config = prepared.config
    engine = EngineConfig(
        folder=prepared.model.folder,
        dtype=prepared.model.precision.name,
        device="cuda" if config.cluster.gpus_per_engine else "cpu",
        backend=config.sync_backend,
        max_model_len=prepared.data.longest,
        threads=prepared.threads.engine,
        seed=config.run.seed,
        in_flight=config.sync.in_flight if config.sync.mode == "async" else "wait",
        initial_version=None,
    )
    reward = config.reward
    return spawner(cluster, config.cluster, engine, config.rollout, reward, config.group_size, prepared.episodes)


def _start_learners(prepared: Prepared, cluster: Cluster) -> Workers:
    config = prepared.config
    setup = LearnerSetup(
        folder=prepared.model.folder,
        dtype=prepared.model.dtype,
        device="cuda" if config.cluster.gpus_per_learner else "cpu",
        threads=prepared.threads.learner,
        reference=prepared.reference_every > 0,
        temperature=config.rollout.temperature,
        total_steps=config.trainer.total_steps,
        objective=prepared.objective,
        terms=prepared.terms,
        sync_backend=config.sync_backend,
        bucket_bytes=config.sync.bucket_mib * 2**20,
        verify=config.sync.verify,
        deadline_s=config.cluster.step_deadline_s,
        stall_s=config.rollout.stall_s,
        seed=config.run.seed,
    )
    world = config.learner.workers
    arguments = [[setup, config.learner, rank, world] for rank in range(world)]
    env = environment(config.cluster)
    if not config.cluster.gpus_per_learner:
        env["DS_ACCELERATOR"] = "cpu"
    return cluster.learners(LearnerWorker, env, *arguments)


def _demand(prepared: Prepared) -> Demand:
    config = prepared.config
    engines = config.rollout.engines if prepared.data.prompts else 0
    return Demand.of(config.cluster, config.rollout, engines, config.learner.workers)
