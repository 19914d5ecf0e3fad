"""Learning: a DeepSpeed rank per `LearnerWorker`, and `Learners`, all of them as the loop sees them.

A rank sums `per_token * weights` over its micro-batches; the weights belong to the whole update, so the gradient does not
depend on the split. It scores with the policy and with the frozen reference, and it sends its weights to the engines.
With `learner.lora` adapters learn and are sent, and the policy without them is the reference.
"""

import gc
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlopt.cluster.actors import free_port, own_address
from rlopt.config.sections import LearnerConfig
from rlopt.core.atomic_write import all_to_disk
from rlopt.core.batches import Batch, PolicyOutputs, Sequences
from rlopt.core.errors import RloptError
from rlopt.core.reduce import Max, Metric
from rlopt.learner.lr_schedule import lr_factor
from rlopt.models import lora
from rlopt.models.policy import Policy, refuse_other_logits, write_model
from rlopt.objectives.core import LossTerms, Objective, merge, total_loss
from rlopt.weight_sync.engine_client import EngineClient
from rlopt.weight_sync.sender import ShmSender, TensorSpec, in_buckets, make_sender


@dataclass(frozen=True)
class LearnerSetup:
    """What a rank needs to know beside `LearnerConfig`.

    Attributes:
        folder: of the initial model, which is also the reference.
        temperature: of sampling; logits are divided by it.
        sync_backend: `shm`, `nccl` or `ipc`.
        verify: compare what engines received with what was sent.
    """

    folder: Path
    dtype: torch.dtype
    device: str
    threads: int
    temperature: float
    total_steps: int
    objective: Objective
    terms: LossTerms
    sync_backend: str
    bucket_bytes: int
    verify: bool
    deadline_s: float
    seed: int


@dataclass(frozen=True)
class Sent:
    """What one synchronisation cost, why engines did not get it (`faults`, by number), and which of these are `dead`."""

    bytes: int
    seconds: float
    faults: Mapping[int, str]
    dead: set[int]


class LearnerWorker:
    """One data-parallel rank. A plain class; `cluster` makes it a Ray actor. Methods are collectives: call all ranks."""

    def __init__(self, setup: LearnerSetup, config: LearnerConfig, rank: int, world: int) -> None:
        self._setup, self._config, self._rank, self._world = setup, config, rank, world
        self._manifest: Mapping[str, str] = {}  # of the last sending, on the rank that sends
        self._moved = 0.0  # largest gradient norm since then

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet, asked of rank 0."""
        return own_address(), free_port()

    def start(self, meeting: tuple[str, int]) -> None:
        """Join the group and load policy and reference.

        Raises:
            RloptError: the model's log-probabilities are others here than in its own forward pass.
        """
        self.join(meeting)
        self.load_models()

    def join(self, meeting: tuple[str, int]) -> None:
        """Meet the other ranks."""
        setup = self._setup
        os.environ.update(RANK=str(self._rank), WORLD_SIZE=str(self._world), LOCAL_RANK="0")
        on_cpu = setup.device == "cpu"
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(setup.threads)
        import deepspeed

        if on_cpu:  # else its first use builds it, with a C++ compiler, for the reductions of inference alone
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "gloo" if on_cpu else "nccl"
        store = self._meet(*meeting)
        torch.distributed.init_process_group(backend, store=store, rank=self._rank, world_size=self._world)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)

    def load_models(self) -> None:
        """Load policy and reference; a collective."""
        setup, config = self._setup, self._config
        torch.manual_seed(setup.seed)
        policy = Policy(setup.folder, setup.dtype, config.logit_chunk, config.gradient_checkpointing)
        if self._adapted:
            lora.adapt(policy.lm, config.lora)
        self._engine = self._wrapped(policy, train=True)
        self._engine.train()
        refuse_other_logits(self._engine, policy.lm, setup.device)
        if self._adapted:
            return
        reference = Policy(setup.folder, setup.dtype, config.logit_chunk).requires_grad_(False).eval()
        self._reference = self._wrapped(reference, train=False) if config.zero_stage == 3 else reference.to(setup.device)

    def _wrapped(self, policy: Policy, train: bool) -> Any:
        """In DeepSpeed's engine; ZeRO-3 gathers what the head reads when `policy.head` is called."""
        import deepspeed

        if self._config.zero_stage == 3:
            for parameter in policy.head_parameters:
                deepspeed.zero.register_external_parameter(policy.head, parameter)
        engine, *_ = deepspeed.initialize(model=policy, config=self._deepspeed_config(train))
        return engine

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
            # What is added up over micro-batches and ranks: in bfloat16 it would depend on how the batch is split.
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
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

    def connect(self, engines: Mapping[int, Any], ranks_per_engine: int, address: tuple[str, int]) -> None:
        """Open the way to the engines, anew where others stood before. `engines` are actor handles by number."""
        setup = self._setup
        # A third of what the driver gives the whole sending: then a late engine is named, and not this learner.
        self._client = EngineClient(engines, ranks_per_engine, setup.deadline_s / 3)
        receivers = len(engines) * ranks_per_engine
        self._sender = make_sender(
            setup.sync_backend, self, self._client, self._rank, setup.bucket_bytes, address, receivers, setup.verify
        )

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Metric]:
        """One optimizer update on this rank's share of a batch; metrics of the share."""
        lr = self._config.lr * lr_factor(self._config, step, self._setup.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        parts = []
        for number, cpu_batch in enumerate(micro_batches, 1):
            batch = cpu_batch.to(self._setup.device)
            output = total_loss(self._setup.objective, self._setup.terms, batch, self._scores(batch))
            loss = (output.per_token * batch.weights).sum()
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            self._engine.backward(loss * self._world)  # DeepSpeed averages over ranks; the weights belong to all of them
            parts.append(output.metrics)
        norm = self._step()
        if lr > 0:
            self._moved = max(self._moved, norm)
        return merge(parts) | {"actor/grad_norm": Max(norm), "actor/lr": Max(lr)}

    def measure(self, micro_batches: list[Batch]) -> dict[str, Metric]:
        """The metrics of this rank's share of a batch that is not learned from."""
        self._engine.eval()
        with torch.no_grad():
            here = [batch.to(self._setup.device) for batch in micro_batches]
            objective, terms = self._setup.objective, self._setup.terms
            return merge([total_loss(objective, terms, batch, self._scores(batch)).metrics for batch in here])

    def _scores(self, batch: Batch) -> PolicyOutputs:
        return PolicyOutputs(*self._engine(batch.token_ids, batch.mask, self._setup.temperature))

    def _step(self) -> float:
        """Move the weights; the global gradient norm before clipping. ZeRO's optimizers report it, the plain one does not."""
        norm = None
        if self._config.zero_stage == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])
        self._engine.step()
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        return float(norm)

    def score(self, pieces: list[Sequences], whose: Literal["policy", "reference"], temperature: float) -> list[Tensor]:
        """Log-probabilities `[b, t]` of every piece, on CPU."""
        model = self._engine if whose == "policy" or self._adapted else self._reference
        model.eval()
        device = self._setup.device
        before = lora.adapters_disabled(self._engine.module.lm) if whose == "reference" and self._adapted else nullcontext()
        with torch.no_grad(), before:
            return [model(p.token_ids.to(device), p.mask.to(device), temperature)[0].cpu() for p in pieces]

    def sync(self, version: int, only: list[int] | None) -> Sent:
        """Send all weights as `version` to all engines, or to those numbered in `only`.

        Raises:
            RloptError: the optimizer moved since the last sending, and no weight changed.
        """
        started = time.monotonic()
        before = self._manifest
        self._client.begin(version, only)
        self._sender.send_weights()
        if isinstance(self._sender, ShmSender) and self._rank == 0:
            self._manifest = self._sender.manifest
        if self._moved and before and before == self._manifest:
            raise RloptError(
                f"sync of version {version}: the optimizer moved, by a gradient norm of up to {self._moved:.1e}, and no weight "
                "changed; learner.lr may be too small for model.dtype"
            )
        self._moved = 0.0
        size, seconds = sum(spec.nbytes for spec in self.metadata()), time.monotonic() - started
        return Sent(size, seconds, self._client.faults, self._client.dead)

    # `weights.Source`: what learns, under its Hugging Face names; adapters with their scale.

    def metadata(self) -> list[TensorSpec]:
        return [_spec(name, parameter) for name, parameter in self._named()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return lora.scaled(self._gathered(self._named()), self._scale)

    def _gathered(self, named: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters, also where ZeRO-3 shards them: a collective."""
        if self._config.zero_stage < 3:
            for name, parameter in named:
                yield name, parameter.detach()
            return
        import deepspeed

        for bucket in in_buckets(named, self._setup.bucket_bytes, lambda named: _spec(*named).nbytes):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        lm = self._engine.module.lm
        return lora.split(lm)[1] if self._adapted else list(lm.named_parameters())

    @property
    def _adapted(self) -> bool:
        """Adapters learn, and the policy without them is the reference."""
        return self._config.lora.rank > 0

    @property
    def _scale(self) -> float:
        """What adapters act times; of no meaning without."""
        return self._config.lora.alpha / max(1, self._config.lora.rank)

    def release(self) -> None:
        """Give the GPU memory back that torch keeps for the next update, to an engine on the same card."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def save(self, folder: Path) -> dict[str, int]:
        """Write `learner/` (each rank its shards) and `hf/` (rank 0, a model that transformers and vLLM load).

        With adapters `learner/` leaves the frozen weights out (but a head that is tied), `hf/` is the merged model, and
        `adapter/` what `peft` loads. Returns the files that this rank's node has in `folder` once all have written, on disk,
        with their sizes in bytes.
        """
        self._engine.save_checkpoint(str(folder / "learner"), tag="state", exclude_frozen_parameters=self._adapted)
        lm = self._engine.module.lm
        learned = {name: tensor.to("cpu", copy=True) for name, tensor in self._gathered(self._named())}
        weights = learned
        if self._adapted:
            frozen = ((name, tensor.cpu()) for name, tensor in self._gathered(lora.split(lm)[0]))
            weights = {n: t.clone() for n, t in lora.merged(frozen, dict(lora.scaled(learned.items(), self._scale)))}
        if self._rank == 0:
            write_model(self._setup.folder, self._setup.dtype, weights, folder / "hf")
            if self._adapted:
                lora.write(lm, learned, folder / "adapter")
        torch.distributed.barrier()
        return all_to_disk(folder)

    def reads(self, path: Path) -> str | None:
        """What stands in a file, as this rank's node has it."""
        return path.read_text() if path.is_file() else None

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        self._engine.load_checkpoint(str(folder / "learner"), tag="state", load_module_strict=not self._adapted)
        self._moved = 0.0

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _spec(name: str, parameter: torch.nn.Parameter) -> TensorSpec:
    """What the whole parameter is, also where ZeRO-3 left this rank a shard of it."""
    return TensorSpec(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
