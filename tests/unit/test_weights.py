"""Weights through shared memory: what arrives is what was sent, or it is refused."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlopt.weight_sync.sender import ShmSender, TensorSpec, difference, digest, read_bucket

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

    def verify(self, manifest: Mapping[str, str]) -> None:
        self.verbs.append("verify")
        self.manifest = dict(manifest)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.verbs.append("finish")


def test_all_weights_arrive_bit_by_bit_in_buckets_of_bounded_size() -> None:
    engine = Engine()
    ShmSender(Model(), engine, is_sender=True, bucket_bytes=30, verify=True).send_weights()
    assert engine.verbs == ["init", "start", "update", "update", "update", "verify", "finish"]  # a+b 28 bytes, c 10, d 48
    assert engine.received.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(engine.received[name], tensor)
        assert engine.received[name].dtype == tensor.dtype
    assert not any(Path(path).exists() for path in engine.paths)


def test_a_rank_that_does_not_send_only_takes_part_in_the_gathering() -> None:
    engine = Engine()
    ShmSender(Model(), engine, is_sender=False, bucket_bytes=30, verify=True).send_weights()
    assert engine.verbs == []


def test_what_arrived_is_compared_with_what_was_sent_and_the_first_tensor_is_named() -> None:
    sent = {"a": "1", "b": "2", "c": "3"}
    assert difference(sent, dict(sent)) is None
    assert difference(sent, {"a": "1", "b": "0", "c": "0"}) == "b arrived changed (and 1 more)"
    assert difference(sent, {"a": "1", "c": "3"}) == "b did not arrive"
    assert difference(sent, {**sent, "d": "4"}) == "d arrived and was not sent"


def test_the_manifest_is_compared_before_the_version_is_declared_and_a_changed_byte_changes_a_digest() -> None:
    engine = Engine()
    sender = ShmSender(Model(), engine, is_sender=True, bucket_bytes=30, verify=True)
    sender.send_weights()
    assert engine.manifest == sender.manifest == {name: digest(tensor) for name, tensor in engine.received.items()}
    assert digest(WEIGHTS["a"]) != digest(WEIGHTS["a"] + torch.eye(2, 3) * 1e-6)
