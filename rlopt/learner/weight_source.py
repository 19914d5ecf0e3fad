"""The learner's weights under their Hugging Face names: for the engines, and for a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlopt.config.learners import LearnerConfig
from rlopt.learner.deepspeed_engine import gathered, spec
from rlopt.models import lora
from rlopt.models.policy import write_model
from rlopt.weight_sync.sender import TensorSpec


@dataclass(frozen=True)
class WeightSource:
    """`weight_sync.sender.Source`: what learns, in one order on every rank; adapters with their scale.

    Attributes:
        lm: the language model in the policy.
        bucket_bytes: how much is gathered at a time under ZeRO-3.
    """

    lm: Any
    config: LearnerConfig
    bucket_bytes: int

    def metadata(self) -> list[TensorSpec]:
        return [spec(name, parameter) for name, parameter in self.learned()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return lora.scaled(self._gathered(self.learned()), self._scale)

    def write(self, source: Path, dtype: torch.dtype, folder: Path, rank: int) -> None:
        """Write `hf/`, and with adapters `adapter/`, from rank 0; a collective.

        Args:
            source: folder of the initial model.
            dtype: of the weights in `hf/`.
        """
        adapted = self.config.lora.rank > 0
        learned = _on_rank_0(self._gathered(self.learned()), rank)
        frozen = _on_rank_0(self._gathered(lora.split(self.lm)[0]), rank) if adapted else {}
        if rank == 0:
            scaled = dict(lora.scaled(learned.items(), self._scale))
            weights = dict(lora.merged(frozen.items(), scaled)) if adapted else learned
            write_model(source, dtype, weights, folder / "hf")
            if adapted:
                lora.write(self.lm, learned, folder / "adapter")

    def _gathered(self, named: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
        return gathered(named, self.config.zero_stage, self.bucket_bytes)

    def learned(self) -> list[tuple[str, torch.nn.Parameter]]:
        return lora.split(self.lm)[1] if self.config.lora.rank else list(self.lm.named_parameters())

    @property
    def _scale(self) -> float:
        """The scale of adapters; unused without any."""
        return self.config.lora.alpha / max(1, self.config.lora.rank)


def _on_rank_0(tensors: Iterator[tuple[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """Copies of all tensors in the memory of rank 0's node, one after another; the other ranks only take part."""
    kept = {}
    for name, tensor in tensors:
        if rank == 0:
            kept[name] = tensor.to("cpu", copy=True)
    return kept
