"""Weights through shared memory: what arrives is what was sent, or it is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlopt.errors import RloptError
from rlopt.weights import ShmSender, TensorSpec, read_bucket, write_bucket

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(2.5),
    "c": torch.arange(5).to(torch.bfloat16),
    "d": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),
}


class Model:
    def metadata(self) -> list[TensorSpec]:
        return [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in WEIGHTS.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from WEIGHTS.items()


class Engine:
    """Reads what it is sent and keeps a list of the verbs."""

    def __init__(self) -> None:
        self.verbs: list[str] = []
        self.received: dict[str, Tensor] = {}
        self.paths: list[str] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.verbs.append("init")

    def start_weight_update(self) -> None:
        self.verbs.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.verbs.append("update")
        self.paths.append(update_info["path"])
        self.received |= dict(read_bucket(**update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.verbs.append("finish")


def test_all_weights_arrive_bit_by_bit_in_buckets_of_bounded_size() -> None:
    engine = Engine()
    ShmSender(Model(), engine, is_sender=True, bucket_bytes=30).send_weights()
    assert engine.verbs == ["init", "start", "update", "update", "update", "finish"]  # a+b 28 bytes, c 10, d 48
    assert engine.received.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(engine.received[name], tensor)
        assert engine.received[name].dtype == tensor.dtype
    assert not any(Path(path).exists() for path in engine.paths)


def test_a_rank_that_does_not_send_only_takes_part_in_the_gathering() -> None:
    engine = Engine()
    ShmSender(Model(), engine, is_sender=False, bucket_bytes=30).send_weights()
    assert engine.verbs == []


def test_a_changed_byte_is_refused_with_the_names_of_the_tensors() -> None:
    info = write_bucket(list(WEIGHTS.items()))
    path = Path(info["path"])
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(RloptError, match="weights a to d arrived changed"):
        read_bucket(**info)
    path.unlink()
