"""One learner rank: it scores sequences, updates the weights, and sends them to the engines.

A rank sums `per_token * weights` over its micro-batches; the weights belong to the whole update, so the gradient does not
depend on the split. With `learner.lora` adapters learn and are sent, and the policy without them is the reference.
"""

import gc
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlopt.cluster.actors import free_port, own_address
from rlopt.config.learners import LearnerConfig
from rlopt.core.atomic_write import all_to_disk
from rlopt.core.batches import Batch, PolicyOutputs
from rlopt.core.errors import RloptError
from rlopt.core.protocols import Sent
from rlopt.core.reduce import Max, Metric, fetched
from rlopt.core.table import SequenceTable, Update
from rlopt.learner.deepspeed_engine import exchanging, frozen_engine, load_state, meet, sharded_at_once, trained_engine
from rlopt.learner.lr_schedule import lr_factor
from rlopt.learner.weight_source import WeightSource
from rlopt.models import lora
from rlopt.models.compiled import compile_policy
from rlopt.models.loading import load_tokenizer
from rlopt.models.parked import Parked
from rlopt.models.policy import Policy, refuse_other_logits, try_to_save
from rlopt.models.sequence_parallel import SharedSequences, register
from rlopt.objectives.core import LossTerms, Objective, merge, total_loss
from rlopt.weight_sync.backends import make_sender
from rlopt.weight_sync.engine_client import EngineClient
from rlopt.weight_sync.group_sender import GroupSender
from rlopt.weight_sync.sender import Sender, ShmSender

Scored = NDArray[np.float32]


@dataclass(frozen=True)
class LearnerSetup:
    """What a rank needs to know beside `LearnerConfig`.

    Attributes:
        folder: of the initial model, which is also the reference.
        reference: whether there is one.
        temperature: of sampling; logits are divided by it.
        sync_backend: `shm`, `nccl` or `ipc`.
        verify: compare what engines received with what was sent.
    """

    folder: Path
    dtype: torch.dtype
    device: str
    threads: int
    reference: bool
    temperature: float
    total_steps: int
    objective: Objective
    terms: LossTerms
    sync_backend: str
    bucket_bytes: int
    verify: bool
    deadline_s: float
    stall_s: float
    seed: int


class LearnerWorker:
    """One rank. A plain class; `cluster` makes it a Ray actor. Methods are collectives: call all ranks."""

    def __init__(self, setup: LearnerSetup, config: LearnerConfig, rank: int, world: int) -> None:
        self._setup, self._config, self._rank, self._world = setup, config, rank, world
        self._adapted = config.lora.rank > 0
        self._engine: Any = None  # DeepSpeed's, around the policy; this and the next two by load_models
        self._reference: Any = None
        self._parked: Parked | None = None
        self._source: WeightSource
        self._client: EngineClient  # this and the next by connect
        self._sender: Sender | None = None
        self._manifest: Mapping[str, str] = {}  # of the last sending, on the rank that sends
        self._moved = 0.0  # largest gradient norm since then

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet, asked of rank 0."""
        return own_address(), free_port()

    def start(self, meeting: tuple[str, int]) -> None:
        """Join the group and load policy and reference.

        Raises:
            RloptError: the model's log-probabilities are others here than in its own forward pass, or it cannot be saved.
        """
        self.join(meeting)
        if self._rank == 0:
            try_to_save(self._setup.folder, self._setup.dtype, load_tokenizer(self._setup.folder))
        self.load_models()

    def join(self, meeting: tuple[str, int]) -> None:
        """Meet the other ranks."""
        setup = self._setup
        meet(self._rank, self._world, meeting, setup.device, setup.threads, setup.deadline_s)

    def load_models(self) -> None:
        """Load policy and reference."""
        setup, config = self._setup, self._config
        torch.manual_seed(setup.seed)
        ranks = config.sequence_parallel
        shared = SharedSequences(self._rank, self._world, ranks) if ranks > 1 else None
        register(shared, exchanging, in_float32=setup.device == "cpu" and setup.dtype == torch.bfloat16)
        about = setup.folder, setup.dtype, config.tokens_of_logits(setup.device != "cpu")
        with sharded_at_once(config, setup.dtype):
            policy = Policy(*about, config.gradient_checkpointing, setup.device, shared, config.packing)
        if self._adapted:
            lora.adapt(policy.lm, config.lora)
        self._engine = trained_engine(policy, config, setup.dtype)
        self._engine.train()
        self._source = WeightSource(policy.lm, config, setup.bucket_bytes)
        refuse_other_logits(self._engine, policy.lm, setup.device)
        self._reference = self._engine
        if setup.reference and not self._adapted:
            with sharded_at_once(config, setup.dtype, "reference"):
                reference = Policy(*about, device=setup.device, shared=shared, packed=config.packing)
            reference.requires_grad_(False).eval()
            if config.zero_stage == 3:
                self._reference = frozen_engine(reference, config, setup.dtype)
            elif "reference" in config.offload:
                self._reference, self._parked = reference, Parked(reference, setup.device)
            else:
                self._reference = reference.to(setup.device)
            if config.compile:
                compile_policy(reference, setup.device)
        if config.compile:
            compile_policy(policy, setup.device)  # after its logits were compared with those of its own forward pass

    def update(self, micro_batches: list[Update], step: int) -> dict[str, Metric]:
        """One optimizer update on this rank's share of it; metrics of the share."""
        lr = self._config.lr * lr_factor(self._config, step, self._setup.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        parts = []
        for number, share in enumerate(micro_batches, 1):
            batch = share.batch().to(self._setup.device)
            output = total_loss(self._setup.objective, self._setup.terms, batch, self._outputs(batch))
            loss = (output.per_token * batch.weights).sum()
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            self._engine.backward(loss * self._world)  # DeepSpeed averages over ranks; the weights belong to all of them
            parts.append(output.metrics)
        norm = self._step()
        if lr > 0:
            self._moved = max(self._moved, norm)
        return merge(fetched(parts)) | {"actor/grad_norm": Max(norm), "actor/lr": Max(lr)} | self._peak()

    def _peak(self) -> dict[str, Metric]:
        if self._setup.device == "cpu":
            return {}
        return {"perf/learner_peak_gib": Max(torch.cuda.max_memory_allocated() / 2**30)}

    def measure(self, micro_batches: list[Update]) -> dict[str, Metric]:
        """The metrics of this rank's share of an update that is not made."""
        self._engine.eval()
        with torch.no_grad():
            here = [share.batch().to(self._setup.device) for share in micro_batches]
            objective, terms = self._setup.objective, self._setup.terms
            return merge(fetched([total_loss(objective, terms, batch, self._outputs(batch)).metrics for batch in here]))

    def _outputs(self, batch: Batch) -> PolicyOutputs:
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

    def score_policy(self, pieces: list[SequenceTable], temperature: float) -> list[Scored]:
        """Log-probabilities `[b, t]` of every piece under the policy, in nats."""
        return self._scores(self._engine, pieces, temperature, nullcontext())

    def score_reference(self, pieces: list[SequenceTable], temperature: float) -> list[Scored]:
        """As `score_policy`, under the reference."""
        around: AbstractContextManager[None] = nullcontext()
        if self._adapted:
            around = lora.adapters_disabled(self._engine.module.lm)
        elif self._parked:
            around = self._parked.on_card()
        return self._scores(self._reference, pieces, temperature, around)

    def _scores(
        self, model: Any, pieces: list[SequenceTable], temperature: float, around: AbstractContextManager[None]
    ) -> list[Scored]:
        model.eval()
        device = self._setup.device
        with torch.no_grad(), around:
            padded = (piece.padded() for piece in pieces)
            return [model(p.token_ids.to(device), p.mask.to(device), temperature)[0].cpu().numpy() for p in padded]

    def connect(self, engines: Mapping[int, Any], ranks_per_engine: int, address: tuple[str, int]) -> None:
        """Connect to the engines, in place of earlier ones. `engines` are actor handles by number."""
        setup = self._setup
        # A third of the driver's deadline for the whole sending: the error then names a late engine, not this learner.
        within_s = setup.deadline_s / 3
        self._client = EngineClient(engines, ranks_per_engine, within_s, setup.stall_s)
        if isinstance(self._sender, GroupSender):
            self._sender.close()
        self._sender = make_sender(
            setup.sync_backend,
            self._source,
            self._client,
            self._rank,
            setup.bucket_bytes,
            address,
            len(engines) * ranks_per_engine,
            setup.verify,
            within_s,
        )

    def sync(self, version: int, only: list[int] | None) -> Sent:
        """Send all weights as `version` to all engines, or to those numbered in `only`.

        Raises:
            RloptError: the optimizer moved since the last sending, and no weight changed.
        """
        started = time.monotonic()
        before = self._manifest
        assert self._sender, "connect comes first"
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
        size, seconds = sum(spec.nbytes for spec in self._source.metadata()), time.monotonic() - started
        broken = isinstance(self._sender, GroupSender) and self._sender.broken
        return Sent(size, seconds, self._client.faults, self._client.dead, broken)

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
        self._source.write(self._setup.folder, self._setup.dtype, folder, self._rank)
        torch.distributed.barrier()
        return all_to_disk(folder)

    def reads(self, path: Path) -> str | None:
        """The content of a file, as this rank's node has it."""
        return path.read_text() if path.is_file() else None

    def load(self, folder: Path) -> None:
        """Load what `save` wrote."""
        load_state(self._engine, folder / "learner", strict=not self._adapted)
        self._moved = 0.0

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
