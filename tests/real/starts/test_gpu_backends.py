"""What can be said of the GPU weight transfer without a GPU: it speaks the API of the pinned vLLM."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import compose
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.base import ParamMeta, VLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.model_executor.model_loader import reload

from rlopt.learner.weight_source import WeightSource
from rlopt.run import wiring
from rlopt.weight_sync import gpu_receivers
from rlopt.weight_sync.backends import gpu_init_info, make_sender
from rlopt.weight_sync.engine_client import EngineClient
from rlopt.weight_sync.fingerprints import Noted
from rlopt.weight_sync.sender import RECEIVERS, TensorSpec, register

CPU = torch.device("cpu")


def test_the_init_infos_are_those_of_the_registered_senders() -> None:
    nccl = gpu_init_info("nccl", rank=0, bucket_bytes=1 << 20, address=("10.0.0.1", 1234), receivers=3)
    assert asdict(nccl) | {"master_address": "10.0.0.1", "master_port": 1234, "world_size": 4, "rank": 0} == asdict(nccl)
    ipc = gpu_init_info("ipc", rank=1, bucket_bytes=1 << 20, address=("10.0.0.1", 1234), receivers=3)
    assert (ipc.packed, ipc.packed_buffer_size_bytes, ipc.is_sender) == (True, 1 << 20, False)
    assert {nccl.backend, ipc.backend} <= set(WeightTransferTrainerFactory._registry)


class Large:
    """A source whose embedding is larger than a bucket: 3 MiB in float32."""

    def metadata(self) -> list[TensorSpec]:
        return [TensorSpec("norm", torch.float32, (8,)), TensorSpec("embedding", torch.float32, (3, 2**18))]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ()


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_a_bucket_holds_the_largest_tensor_however_small_it_was_asked_for(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda info, **others: given.append(info))
    for mib in (1, 4):
        client: Any = None
        make_sender(backend, Large(), client, 0, mib * 2**20, ("127.0.0.1", 1), 1, verify=False, deadline_s=1.0)
    assert [info.packed_buffer_size_bytes for info in given] == [3 * 2**20, 4 * 2**20]


def test_our_client_and_source_have_the_verbs_and_fields_that_vllms_senders_use() -> None:
    for verb in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        theirs, ours = (
            list(inspect.signature(getattr(kind, verb)).parameters) for kind in (VLLMWeightSyncClient, EngineClient)
        )
        assert ours == theirs
    assert set(ParamMeta.__dataclass_fields__) <= set(TensorSpec.__dataclass_fields__)
    assert callable(WeightSource.metadata)
    assert callable(WeightSource.__iter__)


def test_our_receivers_register_once_however_often_vllm_loads_the_plugin() -> None:
    register()
    register()
    for name, _, receiver in RECEIVERS.values():
        assert WeightTransferEngineFactory._registry[name]().__name__ == receiver


class Model(torch.nn.Module):
    """Keeps what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loaded |= dict(weights)


@pytest.mark.parametrize("backend", ["ipc", "nccl"])
def test_a_receiver_on_a_gpu_notes_what_arrived_and_loads_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"ipc": ipc_engine, "nccl": nccl_engine}[backend]
    sent = {"a": torch.arange(6.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    asked = {"names": list(sent), "dtype_names": ["float32", "bfloat16"], "shapes": [[6], [3]]}
    # vLLM's own transports, which need GPUs, and its reload, which needs a whole model.
    monkeypatch.setattr(ipc_engine, "packed_ipc_consumer", lambda **_: list(sent.items()))
    monkeypatch.setattr(
        nccl_engine, "packed_nccl_broadcast_consumer", lambda post_unpack_func, **_: post_unpack_func(list(sent.items()))
    )
    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(nccl_engine, "worker_init_process_group", lambda *_: object())
    model, (_, _, name) = Model(), RECEIVERS[backend]
    receiver: Any = getattr(gpu_receivers, name)(None, SimpleNamespace(parallel_config=None, model_config=None), CPU, model)
    meeting = {"ipc": {}, "nccl": {"master_address": "", "master_port": 1, "rank_offset": 1, "world_size": 2}}[backend]
    receiver.init_transfer_engine(receiver.init_info_cls(packed=True, **meeting))
    more = {"ipc_handles": {}, "tensor_sizes": [24, 6]} if backend == "ipc" else {}
    for _ in range(2):
        receiver.start_weight_update()
        receiver.receive_weights(getattr(module, f"{backend.upper()}WeightTransferUpdateInfo")(**asked, **more))
    there = Noted()
    list(there.noting(sent.items()))
    assert receiver.received == there.digests()
    assert model.loaded.keys() == sent.keys()
    assert receiver.model is model


@pytest.mark.parametrize(
    ("keys", "dtype", "slack"),
    [
        ([], torch.float32, 1),
        ([], torch.bfloat16, 500),
        (["cluster.gpus_per_engine=0.4", "cluster.gpus_per_learner=0.6"], torch.bfloat16, 500),
        (["cluster.gpus_per_engine=0.4", "cluster.gpus_per_learner=0.6"], torch.float32, 10),
    ],
)
def test_what_a_canary_may_differ_by_fits_type_and_device(keys: list[str], dtype: torch.dtype, slack: int) -> None:
    assert wiring.rounding_slack(compose("+algo=grpo", *keys), dtype) == slack
