"""Digests of tensors where they are: on a GPU, without copying them to the host. Sender and receiver get the same ones.

A tensor's bytes are read as 32-bit words `x`, in blocks of `BLOCK`. With odd 64-bit constants `c_i` and `M`, and all sums
modulo 2^64, the digest is `h = h M + sum_i c_i x_i` over one block after another. A word that changes by `d` changes it by
`d c_i M^k`, which is 0 for no `d` under 2^32; several changes cancel with a chance of about 2^-64. Integers are exact, so that
the order in which a GPU adds them up does not matter. It is no defence against an attacker.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlopt.weight_sync.sender import Client, Source, TensorSpec

BLOCK = 2**22
"""Words of which a temporary of 8 bytes each is made at a time."""

ODD, MORE = -7046029254386353131, -4417276706812531889
"""2^64 divided by the golden ratio, as in Fibonacci hashing, and xxHash's second prime; both as signed numbers."""


def fingerprint(tensor: Tensor) -> Tensor:
    """The digest `[1]` int64 of a tensor, on its device and not waited for."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    if len(flat) % 4 or flat.storage_offset() % 4:
        flat = pad(flat, (0, -len(flat) % 4)).clone()
    words, found = flat.view(torch.int32), torch.zeros(1, dtype=torch.int64, device=tensor.device)
    factors = _factors(tensor.device)
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].to(torch.int64)
        found = found * MORE + (block * factors[: len(block)]).sum()
    return found


@lru_cache(maxsize=1)
def _factors(device: torch.device) -> Tensor:
    """`c_i`, `[BLOCK]`."""
    index = torch.arange(1, BLOCK + 1, dtype=torch.int64, device=device) * ODD
    return (index ^ (index >> 29)) | 1


class Noted:
    """Digests by name. Tensors pass through `noting`; nothing is waited for before `digests`."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Begin again."""
        self._found = {}

    def noting(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, each of which is noted."""
        for name, tensor in tensors:
            self._found[name] = fingerprint(tensor)
            yield name, tensor

    def digests(self) -> dict[str, str]:
        """Tensor name to digest, of all that were noted."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # they may have been computed beside this stream
        numbers = torch.cat(list(self._found.values())).tolist() if self._found else []
        return {name: f"{number & (2**64 - 1):016x}" for name, number in zip(self._found, numbers, strict=True)}


class NotedSource:
    """A source whose tensors are noted as they are sent. vLLM's `WeightSource`."""

    def __init__(self, source: Source) -> None:
        self._source, self.noted = source, Noted()

    def metadata(self) -> list[TensorSpec]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.noted.forget()
        return self.noted.noting(self._source)


class VerifyingClient:
    """A client that compares what engines received with what a `NotedSource` sent before it declares the new version."""

    def __init__(self, client: Client, noted: Noted) -> None:
        self._client, self._noted = client, noted

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._client.update_weights(update_info)

    def verify(self, manifest: Mapping[str, str]) -> None:
        self._client.verify(manifest)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.verify(self._noted.digests())
        self._client.finish_weight_update(weight_version)
