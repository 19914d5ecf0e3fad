"""vLLM's receivers on GPUs, with a digest of every tensor that arrives: run inside vLLM's worker, loaded by vLLM itself."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rlopt.weight_sync.fingerprints import Noted


class _Noting:
    """Stands where the receiver has its model, while tensors arrive."""

    def __init__(self, model: Any, noted: Noted) -> None:
        self._model, self._noted = model, noted

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self._noted.noting(weights))


class _Verified:
    """What is added to a receiver of vLLM's, which hands what it received to `self.model.load_weights`."""

    model: Any
    _noted: Noted

    def init_transfer_engine(self, init_info: Any) -> None:
        self._noted = Noted()
        super().init_transfer_engine(init_info)  # type: ignore[misc]

    def start_weight_update(self) -> None:
        self._noted.forget()
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model, self.model = self.model, _Noting(self.model, self._noted)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    @property
    def received(self) -> dict[str, str]:
        """Tensor name to digest, of all that the last weight update delivered."""
        return self._noted.digests()


class VerifiedNccl(_Verified, NCCLWeightTransferEngine):  # type: ignore[misc]
    """By NCCL's broadcast."""


class VerifiedIpc(_Verified, IPCWeightTransferEngine):  # type: ignore[misc]
    """By handles of the learner's own memory."""
