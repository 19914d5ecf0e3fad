"""The dtype of a run: `model.dtype=auto` decided. On CPUs by measuring which of float32 and bfloat16 is quicker there."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rlopt.cluster.threads import PARAMETERS_A_THREAD, cores
from rlopt.config.schema import Config
from rlopt.config.sections import ModelConfig
from rlopt.models.loading import Shape

ENOUGH = 1.3
"""bfloat16 is taken if it is so many times as quick: it rounds, and what is not matrices is no quicker."""

LEARNED, SAMPLED = 256, 64
"""Rows that are multiplied at a time, forwards and backwards as in an update, and forwards as in sampling."""

Name = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """The dtype of learner and engine, and why."""

    name: Name
    why: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.name == "float32" else torch.bfloat16


def dtype_of(kept: Mapping[str, Any]) -> Name:
    """The dtype of a run, from the config in its folder. Before rlopt recorded it, `auto` meant float32 on CPUs."""
    model, cluster = kept.get("model") or {}, kept.get("cluster") or {}
    return ModelConfig("", model.get("dtype", "auto")).resolved_dtype(cluster.get("gpus_per_learner", 0.0))


def bfloat16_gain(hidden: int, intermediate: int) -> float:
    """How many times as fast as in float32 a layer of such sizes is learned and sampled from in bfloat16, on all cores.

    At most 1,024 by 4,096 are measured; larger matrices go as fast. Under a second, where bfloat16 has instructions.
    """
    hidden, intermediate, before = min(hidden, 1024), min(intermediate, 4096), torch.get_num_threads()
    torch.set_num_threads(cores())
    with torch.random.fork_rng():
        layers = [_layer(hidden, intermediate, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for layer in layers:
        _seconds(layer, hidden)  # the first use packs weights
    rounds = [(_seconds(layers[0], hidden), _seconds(layers[1], hidden)) for _ in range(3)]
    torch.set_num_threads(before)
    return min(float32_s for float32_s, _ in rounds) / min(bfloat16_s for _, bfloat16_s in rounds)


def choose(
    config: Config, shape: Shape, kept: Mapping[str, Any] | None, gain_of: Callable[[int, int], float] = bfloat16_gain
) -> Precision:
    """`model.dtype` decided, for a model of this shape.

    Args:
        kept: the config of the run that this one continues, if any: its numbers depend on its dtype.
        gain_of: as `bfloat16_gain`.
    """
    if config.model.dtype != "auto":
        return Precision(config.model.dtype, "as asked")
    if kept is not None:
        return Precision(dtype_of(kept), "as the run that it continues")
    if config.cluster.gpus_per_learner:
        return Precision("bfloat16", "auto: on GPUs")
    if not config.learner.zero_stage:
        return Precision("float32", "auto: learner.zero_stage=0")
    if shape.parameters < PARAMETERS_A_THREAD:
        return Precision("float32", "auto: so small a model is no quicker in bfloat16")
    if config.cluster.address != "local":
        return Precision("float32", "auto: the cluster's CPUs were not measured")
    gain = gain_of(shape.hidden, shape.intermediate)
    said = f"auto: bfloat16 multiplies its matrices {gain:.1f} times as fast as float32 here"
    return Precision("bfloat16", said) if gain >= ENOUGH else Precision("float32", f"{said}, and has to by {ENOUGH}")


def _layer(hidden: int, intermediate: int, dtype: torch.dtype) -> torch.nn.Module:
    up, down = torch.nn.Linear(hidden, intermediate), torch.nn.Linear(intermediate, hidden)
    return torch.nn.Sequential(up, torch.nn.SiLU(), down).to(dtype)


def _seconds(layer: torch.nn.Module, hidden: int) -> float:
    """Of one update, and of as many rows sampled."""
    rows = torch.ones(LEARNED, hidden, dtype=next(layer.parameters()).dtype)
    began = time.perf_counter()
    layer(rows).sum().backward()
    with torch.no_grad():
        for part in torch.split(rows, SAMPLED):
            layer(part)
    return time.perf_counter() - began
