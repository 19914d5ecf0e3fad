"""Everything that calls DeepSpeed: how ranks meet, and a policy in DeepSpeed's engine, trained or frozen."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlopt.config.learners import BUCKET_KEY, LearnerConfig
from rlopt.config.passthrough import merged
from rlopt.core.errors import RloptError, first_line
from rlopt.models.policy import Policy
from rlopt.models.sequence_parallel import Attend
from rlopt.weight_sync.sender import TensorSpec, in_buckets


def meet(rank: int, world: int, meeting: tuple[str, int], device: str, threads: int, deadline_s: float) -> None:
    """Join the other ranks' process group.

    Args:
        meeting: host and port where rank 0 listens.
        threads: of torch, where `device` is `cpu`.
    """
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
    on_cpu = device == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads)
    import deepspeed

    if on_cpu:  # its first use would build it with a C++ compiler, and only inference needs it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if on_cpu else "nccl"
    store = _store(rank, world, meeting, timedelta(seconds=deadline_s))
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def _store(rank: int, world: int, meeting: tuple[str, int], deadline: timedelta) -> TCPStore:
    """The store where ranks meet. By default torch would listen on every interface, not only on `host`."""
    host, port = meeting
    if rank:
        return TCPStore(host, port, world, is_master=False, timeout=deadline)
    listener = socket.create_server((host, port))
    return TCPStore(host, port, world, is_master=True, timeout=deadline, master_listen_fd=listener.detach())


def trained_engine(policy: Policy, config: LearnerConfig, dtype: torch.dtype) -> Any:
    """DeepSpeed's engine around a policy that learns with AdamW."""
    params = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "torch_adam": True, "fused": True}
    learns: dict[str, Any] = {"gradient_clipping": config.max_grad_norm, "optimizer": {"type": "AdamW", "params": params}}
    zero: dict[str, Any] = {}
    if config.zero_stage:
        trainable = sum(getattr(p, "ds_numel", p.numel()) for p in policy.parameters() if p.requires_grad)
        zero[BUCKET_KEY] = config.reduce_bucket(trainable)
    if "optimizer" in config.offload:
        zero["offload_optimizer"] = IN_HOST_MEMORY
    learns["zero_optimization"] = zero
    return _engine(policy, config.zero_stage, merged(learns, _shared_config(config, dtype, "parameters")))


def frozen_engine(policy: Policy, config: LearnerConfig, dtype: torch.dtype) -> Any:
    """DeepSpeed's engine around a policy that does not learn, sharded as the trained one is."""
    return _engine(policy, config.zero_stage, _shared_config(config, dtype, "reference"))


IN_HOST_MEMORY = {"device": "cpu", "pin_memory": True}


def _engine(policy: Policy, zero_stage: int, config: dict[str, Any]) -> Any:
    """ZeRO-3 gathers what the head reads when `policy.head` is called."""
    import deepspeed

    if zero_stage == 3:
        for parameter in policy.head_parameters:
            deepspeed.zero.register_external_parameter(policy.head, parameter)
    engine, *_ = deepspeed.initialize(model=policy, config=config)
    return engine


def _shared_config(config: LearnerConfig, dtype: torch.dtype, weights: str) -> dict[str, Any]:
    """`weights`: what `learner.offload` calls those of this model."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        if weights in config.offload:
            zero["offload_param"] = IN_HOST_MEMORY
        zero["stage3_param_persistence_threshold"] = 0  # every weight is sharded, the small ones of tiny models too
    ours = {
        "train_micro_batch_size_per_gpu": 1,  # a formality: micro-batches are counted in tokens, not sequences
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        # What is added up over micro-batches and ranks: in bfloat16 it would depend on how the batch is split.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    return merged(ours, config.deepspeed)


@contextmanager
def sharded_at_once(config: LearnerConfig, dtype: torch.dtype, weights: str = "parameters") -> Iterator[None]:
    """In here transformers makes models that ZeRO-3 shards layer by layer as they are made: no rank ever holds a whole one.

    A collective, as making the model is. Below ZeRO-3 it does nothing.
    """
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations import deepspeed as knows

    told = _Told(_shared_config(config, dtype, weights))  # transformers keeps a weak reference to it
    knows.set_hf_deepspeed_config(told)
    try:
        yield
    finally:
        knows.unset_hf_deepspeed_config()


@dataclass(eq=False)
class _Told:
    """What transformers asks of its `HfDeepSpeedConfig`, which needs another package."""

    config: dict[str, Any]

    def is_zero3(self) -> bool:
        return True


def exchanging(attend: Attend, group: Any) -> Callable[..., Tensor]:
    """DeepSpeed's Ulysses: `attend` sees all tokens and this rank's heads, its caller this rank's tokens and all heads."""
    from deepspeed.sequence.layer import DistributedAttention

    return partial(DistributedAttention(attend, group, scatter_idx=2, gather_idx=1), batch_dim_idx=0)


def gathered(named: list[tuple[str, torch.nn.Parameter]], zero_stage: int, bucket_bytes: int) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters by name, also where ZeRO-3 shards them: then a collective, `bucket_bytes` at a time."""
    if zero_stage < 3:
        for name, parameter in named:
            yield name, parameter.detach()
        return
    import deepspeed

    for bucket in in_buckets(named, bucket_bytes, lambda named: spec(*named).nbytes):
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
            for name, parameter in bucket:
                yield name, parameter.detach()


def spec(name: str, parameter: torch.nn.Parameter) -> TensorSpec:
    """Type and shape of the whole parameter, also where this rank holds a shard of it (ZeRO-3)."""
    return TensorSpec(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))


def load_state(engine: Any, folder: Path, strict: bool) -> None:
    """Load what `save_checkpoint` wrote to `folder`; `strict`: every weight must be in it.

    DeepSpeed itself would run whatever a file says that it was given. Here tensors, plain values and `written_by_deepspeed` are
    read, and nothing else.

    Raises:
        RloptError: a file holds something else.
    """
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    TorchCheckpointEngine.load = lambda _, path, map_location=None: read_tensors(path, map_location)
    engine.load_checkpoint(str(folder), tag="state", load_module_strict=strict)


def read_tensors(path: str, map_location: Any) -> Any:
    """The content of one file of a checkpoint, as `load_state` reads it."""
    with torch.serialization.safe_globals(written_by_deepspeed()):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = found[1] if found else first_line(error)
            raise RloptError(f"run.resume: {path} holds {what}, which no checkpoint of rlopt does; use another one") from None


def written_by_deepspeed() -> list[Any]:
    """The classes whose objects DeepSpeed keeps beside tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
