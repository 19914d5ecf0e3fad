"""The receiving half of the CPU weight transfer: runs inside vLLM's worker process, loaded by vLLM itself."""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlopt.weights import read_bucket


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every bucket describes itself."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket, as `weights.write_bucket` describes it."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    digest: str


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Reads buckets from shared memory and loads them layer by layer.

    The layer-wise reload is needed on CPU, where linear layers are packed after loading and their parameters are empty.
    """

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # the base class would synchronise an accelerator

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        self.model.load_weights(
            read_bucket(update_info.path, update_info.names, update_info.dtypes, update_info.shapes, update_info.digest)
        )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                # A head that is tied to the embedding receives no weights of its own, so the reload leaves the copy of
                # the embedding that was packed for the CPU as it was; without this the head keeps its first version.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass
