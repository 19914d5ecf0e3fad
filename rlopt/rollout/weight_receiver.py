"""The methods with which a learner sends weights to an engine: vLLM's own, and `received`."""

import os
from typing import Any

import numpy as np

from rlopt.rollout.vllm_engine import PauseMode
from rlopt.weight_sync.sender import write_shared


class WeightReceiver:
    """The verbs of vLLM's weight transfer, called by a sender through `EngineClient`. A base of `RolloutWorker`."""

    _llm: Any

    def __init__(self, in_flight: PauseMode) -> None:
        """`in_flight`: what becomes of samples when weights arrive."""
        self._pause_mode = in_flight
        self._updating = False

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        if self._updating:  # the last update failed its check; end it without a version, paused
            await self._llm.finish_weight_update()
        mode = self._pause_mode
        await self._llm.pause_generation(mode=mode, clear_cache=mode != "keep")
        await self._llm.start_weight_update()
        self._updating = True

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        try:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info))
        except BaseException:
            self._updating = False  # vLLM ends a failed update by itself
            raise

    async def update_weights_from(self, update_info: dict[str, Any], data: np.ndarray | None) -> None:
        """As `update_weights`, for workers not all on the learner's node: `data` are the bytes of the bucket, None on it."""
        if data is None:
            await self.update_weights(update_info)
            return
        path = write_shared(data.tobytes())
        try:
            await self.update_weights({**update_info, "path": path})
        finally:
            os.unlink(path)

    async def received(self) -> dict[str, str]:
        """Tensor name to digest, of what this update delivered to the first of the engine's processes."""
        receipts: list[dict[str, str]] = await self._llm.collective_rpc("received_weights")
        return receipts[0]

    async def finish_weight_update(self, weight_version: str) -> None:
        await self._llm.finish_weight_update(weight_version)
        self._updating = False
        await self._llm.resume_generation()
