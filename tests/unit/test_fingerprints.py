"""Digests of tensors on their device."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rlopt.weight_sync import fingerprints
from rlopt.weight_sync.fingerprints import MORE, Noted, NotedSource, VerifyingClient, fingerprint
from rlopt.weight_sync.sender import TensorSpec, difference

WRAP = 2**64


def test_the_digest_is_the_sum_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "BLOCK", 2)
    monkeypatch.setattr(fingerprints, "_factors", lambda device: torch.tensor([3, 5]))
    words = torch.tensor([1, -2, 7], dtype=torch.int32)
    # The first block is 3 x 1 + 5 x -2 = -7, the second 3 x 7 = 21.
    assert fingerprint(words).item() % WRAP == (-7 * MORE + 21) % WRAP
    assert fingerprint(words.view(torch.float32)).item() == fingerprint(words).item()  # bytes count, not their type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_one_changed_element_changes_the_digest(dtype: torch.dtype, size: int) -> None:
    tensor = torch.arange(size).to(dtype)
    before = fingerprint(tensor).item()
    assert fingerprint(tensor.clone()).item() == before
    for place in {0, size // 2, size - 1}:
        changed = tensor.clone()
        changed[place] = 0 if changed[place] else 1
        assert fingerprint(changed).item() != before


def test_the_order_of_elements_changes_the_digest_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "BLOCK", 4)
    tensor = torch.arange(12, dtype=torch.float32)
    swapped = torch.cat([tensor[4:8], tensor[:4], tensor[8:]])
    assert len({fingerprint(one).item() for one in (tensor, tensor.flip(0), swapped)}) == 3


def test_a_slice_and_a_transposed_tensor_have_the_digest_of_their_copies() -> None:
    many = torch.arange(20, dtype=torch.bfloat16)
    assert fingerprint(many[1:8]).item() == fingerprint(many[1:8].clone()).item()  # begins between two words
    square = torch.arange(9.0).reshape(3, 3).T
    assert fingerprint(square).item() == fingerprint(square.contiguous()).item()


class Weights:
    """Two tensors."""

    def metadata(self) -> list[TensorSpec]:
        return []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.arange(10.0)
        yield "b", torch.ones(3, dtype=torch.bfloat16)


class Client:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        self.told.append(init_info)

    def start_weight_update(self) -> None:
        self.told.append("start")

    def update_weights(self, update_info: dict[str, object]) -> None:
        self.told.append(update_info)

    def verify(self, manifest: dict[str, str]) -> None:
        self.told.append(manifest)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.told.append(f"finish {weight_version}")


def test_what_was_sent_is_compared_with_what_arrived_before_the_version_is_declared() -> None:
    source, client = NotedSource(Weights()), Client()
    arrived = dict(source)
    VerifyingClient(client, source.noted).finish_weight_update("3")
    manifest, last = client.told
    assert last == "finish 3"
    here = Noted()
    assert dict(here.noting(arrived.items())) == arrived
    assert difference(manifest, here.digests()) is None  # type: ignore[arg-type]
    arrived["b"][2] = 2.0
    here.forget()
    list(here.noting(arrived.items()))
    assert difference(manifest, here.digests()) == "b arrived changed"  # type: ignore[arg-type]


def test_a_second_sending_begins_a_new_manifest() -> None:
    source = NotedSource(Weights())
    list(source)
    next(iter(source))
    assert list(source.noted.digests()) == ["a"]
