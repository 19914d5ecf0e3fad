"""The receiving half of the transfer through shared memory: runs inside vLLM's worker process, loaded by vLLM itself."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlopt.models import lora
from rlopt.weight_sync.sender import digest, read_bucket


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every bucket describes itself."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket, as `sender.write_bucket` describes it."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Reads buckets from shared memory and loads them layer by layer.

    The layer-wise reload is needed on CPU, where linear layers are packed after loading and their parameters are empty.
    """

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        self.received: dict[str, str] = {}
        self.adapters: dict[str, Tensor] = {}

    def start_weight_update(self) -> None:
        self.received, self.adapters = {}, {}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # the base class would synchronize an accelerator

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        tensors = read_bucket(update_info.path, update_info.names, update_info.dtypes, update_info.shapes)
        self.received |= {name: digest(tensor) for name, tensor in tensors}
        adapters = {name: tensor for name, tensor in tensors if name.endswith((lora.A, lora.B))}
        self.adapters |= adapters
        if not adapters:
            self.model.load_weights(tensors)

    def finish_weight_update(self) -> None:
        if self.adapters:  # read again from the file, which stays in the page cache: a second copy of the model would not pay
            initial = DefaultModelLoader(self.vllm_config.load_config).get_all_weights(self.model_config, self.model)
            here, self.adapters = self.adapters, {}
            self.model.load_weights(lora.merged(((name, tensor.to(self.device)) for name, tensor in initial), here))
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                # A head that is tied to the embedding receives no weights of its own, so the reload leaves the copy of
                # the embedding that was packed for the CPU as it was; without this the head keeps its first version.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


class Receipts:
    """Methods that are added to vLLM's worker; vLLM makes this a base of the worker's class."""

    _steps_made = 0

    def count_steps(self) -> None:
        """From now on count the steps that the model makes."""
        run = self.model_runner.execute_model  # type: ignore[attr-defined]

        def counted(*arguments: Any, **named: Any) -> Any:
            self._steps_made += 1
            return run(*arguments, **named)

        self.model_runner.execute_model = counted  # type: ignore[attr-defined]

    def steps_made(self) -> int:
        """Steps since `count_steps`."""
        return self._steps_made

    def received_weights(self) -> dict[str, str]:
        """Tensor name to digest, of all that the last weight update delivered."""
        return dict(self.weight_transfer_engine.received)  # type: ignore[attr-defined]
