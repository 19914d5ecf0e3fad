"""Learning: a DeepSpeed rank per `LearnerWorker`, and `Learners`, all of them as the loop sees them.

A rank sums `per_token * weights` over its micro-batches; the weights sum to one over all ranks, so the gradient does not
depend on the split. It scores with the policy and with the frozen reference, and it sends its weights to the engines.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlopt.batching import split
from rlopt.cluster import EngineClient, Workers, free_port, own_address
from rlopt.config import LearnerConfig
from rlopt.model import Policy
from rlopt.objectives.core import Objective, Terms, merge, total_loss
from rlopt.types import Batch, Max, Metric, Scores
from rlopt.weights import TensorSpec, in_buckets, make_sender


@dataclass(frozen=True)
class LearnerSetup:
    """What a rank needs to know beside `LearnerConfig`.

    Attributes:
        folder: of the initial model, which is also the reference.
        temperature: of sampling; logits are divided by it.
        sync_backend: `shm`, `nccl` or `ipc`.
    """

    folder: Path
    dtype: torch.dtype
    device: str
    threads: int
    temperature: float
    objective: Objective
    terms: Terms
    sync_backend: str
    bucket_bytes: int
    deadline_s: float
    seed: int


@dataclass(frozen=True)
class Sent:
    """What one synchronisation cost."""

    bytes: int
    seconds: float


class LearnerWorker:
    """One data-parallel rank. A plain class; `cluster` makes it a Ray actor. Methods are collectives: call all ranks."""

    def __init__(self, setup: LearnerSetup, config: LearnerConfig, rank: int, world: int) -> None:
        self._setup, self._config, self._rank, self._world = setup, config, rank, world

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet, asked of rank 0."""
        return own_address(), free_port()

    def start(self, meeting: tuple[str, int]) -> None:
        """Join the group and load policy and reference."""
        setup, config = self._setup, self._config
        os.environ.update(RANK=str(self._rank), WORLD_SIZE=str(self._world), LOCAL_RANK="0")
        on_cpu = setup.device == "cpu"
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(setup.threads)
        import deepspeed

        torch.manual_seed(setup.seed)
        backend = "gloo" if on_cpu else "nccl"
        store = self._meet(*meeting)
        torch.distributed.init_process_group(backend, store=store, rank=self._rank, world_size=self._world)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        policy = Policy(setup.folder, setup.dtype, config.logit_chunk, config.gradient_checkpointing)
        reference = Policy(setup.folder, setup.dtype, config.logit_chunk).requires_grad_(False).eval()
        self._engine, *_ = deepspeed.initialize(model=policy, config=self._deepspeed_config(train=True))
        if config.zero_stage == 3:
            reference, *_ = deepspeed.initialize(model=reference, config=self._deepspeed_config(train=False))
        self._reference = reference.to(setup.device)

    def _meet(self, host: str, port: int) -> TCPStore:
        """The store where ranks find one another. By itself torch would listen on every interface, not on `host` alone."""
        deadline = timedelta(seconds=self._setup.deadline_s)
        if self._rank:
            return TCPStore(host, port, self._world, is_master=False, timeout=deadline)
        listener = socket.create_server((host, port))
        return TCPStore(host, port, self._world, is_master=True, timeout=deadline, master_listen_fd=listener.detach())

    def _deepspeed_config(self, train: bool) -> dict[str, Any]:
        setup, config = self._setup, self._config
        zero: dict[str, Any] = {"stage": config.zero_stage}
        if config.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = 0  # every weight is sharded, the small ones of tiny models too
        shared = {
            "train_micro_batch_size_per_gpu": 1,  # a formality: micro-batches are counted in tokens, not sequences
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": setup.dtype == torch.bfloat16},
        }
        if not train:
            return shared
        return shared | {
            "gradient_clipping": config.max_grad_norm,
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "torch_adam": True},
            },
        }

    def connect(self, engines: list[Any], ranks_per_engine: int, address: tuple[str, int]) -> None:
        """Open the way to the engines. `engines` are actor handles with the weight-transfer verbs."""
        setup = self._setup
        self._client = EngineClient(engines, ranks_per_engine, setup.deadline_s)
        receivers = len(engines) * ranks_per_engine
        self._sender = make_sender(setup.sync_backend, self, self._client, self._rank, setup.bucket_bytes, address, receivers)

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Metric]:
        """One optimizer step on this rank's share of a batch; metrics of the share."""
        lr = self._config.lr * min(1.0, step / max(1, self._config.warmup_steps))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        parts = []
        for number, cpu_batch in enumerate(micro_batches, 1):
            batch = cpu_batch.to(self._setup.device)
            logprobs, entropy = self._engine(batch.token_ids, batch.mask, self._setup.temperature)
            scores = Scores(logprobs, entropy, self._reference_logprobs(batch))
            output = total_loss(self._setup.objective, self._setup.terms, batch, scores)
            loss = (output.per_token * batch.weights).sum()
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            self._engine.backward(loss * self._world)  # DeepSpeed averages over ranks; the weights already sum to one
            parts.append(output.metrics)
        norm = self._step()
        return merge(parts) | {"actor/grad_norm": Max(norm), "actor/lr": Max(lr)}

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logprobs, _ = self._reference(batch.token_ids, batch.mask, self._setup.temperature)
        return logprobs  # type: ignore[no-any-return]

    def _step(self) -> float:
        """Move the weights; the global gradient norm before clipping. ZeRO's optimizers report it, the plain one does not."""
        norm = None
        if self._config.zero_stage == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])
        self._engine.step()
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        return float(norm)

    def score(self, batch: Batch) -> Tensor:
        """Policy log-probabilities `[B, T]` of a whole batch, on CPU; every rank scores the same."""
        self._engine.eval()
        with torch.no_grad():
            here = batch.to(self._setup.device)
            logprobs, _ = self._engine(here.token_ids, here.mask, self._setup.temperature)
        return logprobs.cpu()  # type: ignore[no-any-return]

    def sync(self, version: int) -> Sent:
        """Send all weights to all engines as `version`."""
        started = time.monotonic()
        self._client.version = version
        self._sender.send_weights()
        return Sent(sum(spec.nbytes for spec in self.metadata()), time.monotonic() - started)

    # `weights.Source`: the policy under its Hugging Face names.

    def metadata(self) -> list[TensorSpec]:
        return [_spec(name, parameter) for name, parameter in self._named()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        if self._config.zero_stage < 3:
            for name, parameter in self._named():
                yield name, parameter.detach()
            return
        import deepspeed

        for bucket in in_buckets(self._named(), self._setup.bucket_bytes, lambda named: _spec(*named).nbytes):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name.removeprefix("lm."), p) for name, p in self._engine.module.named_parameters()]

    def save(self, folder: Path) -> None:
        """Write `learner/` (each rank its shards) and `hf/` (rank 0, a model that transformers and vLLM load)."""
        self._engine.save_checkpoint(str(folder / "learner"), tag="state")
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in self}
        if self._rank == 0:
            lm = self._engine.module.lm
            lm.save_pretrained(folder / "hf", state_dict=weights)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        self._engine.load_checkpoint(str(folder / "learner"), tag="state")

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _spec(name: str, parameter: torch.nn.Parameter) -> TensorSpec:
    """What the whole parameter is, also where ZeRO-3 left this rank a shard of it."""
    return TensorSpec(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))


class Learners:
    """All ranks. Every call is made on all of them at once and waited for."""

    def __init__(self, workers: Workers, token_budget: int) -> None:
        self._workers, self._token_budget = workers, token_budget

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step on `batch`; metrics exact over all ranks."""
        shares = split(batch, len(self._workers), self._token_budget)
        parts = self._workers.call("update", *((share, step) for share in shares))
        return {name: metric.value for name, metric in merge(parts).items()}

    def score(self, batch: Batch) -> Tensor:
        """Policy log-probabilities `[B, T]`."""
        scores: Tensor = self._workers.call("score", *([batch] for _ in range(len(self._workers))))[0]
        return scores

    def sync(self, version: int) -> Sent:
        """Send the weights to all engines as `version`; returns when the last engine has them."""
        sent: Sent = self._workers.call("sync", *([version] for _ in range(len(self._workers))))[0]
        return sent

    def save(self, folder: Path) -> None:
        self._workers.call("save", *([folder] for _ in range(len(self._workers))))

    def load(self, folder: Path) -> None:
        self._workers.call("load", *([folder] for _ in range(len(self._workers))))
