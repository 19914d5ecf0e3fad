"""What can be said of the GPU weight transfer without a GPU: it speaks the API of the pinned vLLM."""

import inspect
from dataclasses import asdict

from vllm.distributed.weight_transfer.base import ParamMeta, VLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlopt.cluster import EngineClient
from rlopt.learner import LearnerWorker
from rlopt.weights import SHM_BACKEND, TensorSpec, gpu_init_info, register


def test_the_init_infos_are_those_of_the_registered_senders() -> None:
    nccl = gpu_init_info("nccl", rank=0, bucket_bytes=1 << 20, address=("10.0.0.1", 1234), receivers=3)
    assert asdict(nccl) | {"master_address": "10.0.0.1", "master_port": 1234, "world_size": 4, "rank": 0} == asdict(nccl)
    ipc = gpu_init_info("ipc", rank=1, bucket_bytes=1 << 20, address=("10.0.0.1", 1234), receivers=3)
    assert (ipc.packed, ipc.packed_buffer_size_bytes, ipc.is_sender) == (True, 1 << 20, False)
    assert {nccl.backend, ipc.backend} <= set(WeightTransferTrainerFactory._registry)


def test_our_client_and_source_have_the_verbs_and_fields_that_vllms_senders_use() -> None:
    for verb in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        theirs, ours = (
            list(inspect.signature(getattr(kind, verb)).parameters) for kind in (VLLMWeightSyncClient, EngineClient)
        )
        assert ours == theirs
    assert set(ParamMeta.__dataclass_fields__) <= set(TensorSpec.__dataclass_fields__)
    assert callable(LearnerWorker.metadata)
    assert callable(LearnerWorker.__iter__)


def test_our_cpu_back_end_registers_once_however_often_vllm_loads_the_plugin() -> None:
    register()
    register()
    assert WeightTransferEngineFactory._registry[SHM_BACKEND]().__name__ == "ShmWeightTransferEngine"
