"""Sending weights from learner to engines, over vLLM's weight-transfer API.

A sender lives in every learner rank; only rank 0 talks to the engines, through a `Client`. On GPUs the senders are
vLLM's own (NCCL broadcast, CUDA IPC), and tensors are hashed there (`fingerprints`). Without a GPU, and for adapters, it is
`ShmSender`, with `shm_receiver` as its counterpart in the engine: weights are gathered in bounded buckets, written to shared
memory, and read there; between nodes the bytes of a bucket travel through Ray's object store and are written again on the other
node (`rollout.weight_receiver`).

The sender keeps a manifest, the digest of every tensor as it was sent; what every engine received is hashed there and compared
before the new version is declared (`Client.verify`).
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import xxhash
from torch import Tensor

from rlopt.cluster.leftovers import name_shared_memory, shared_prefix
from rlopt.core.appended import FULL
from rlopt.core.errors import RloptError

T = TypeVar("T")

SHM_BACKEND = "rlopt_shm"
"""The name of our back end in vLLM's registry."""

RECEIVERS = {
    "shm": (SHM_BACKEND, "rlopt.weight_sync.shm_receiver", "ShmWeightTransferEngine"),
    "nccl": ("rlopt_nccl", "rlopt.weight_sync.gpu_receivers", "VerifiedNccl"),
    "ipc": ("rlopt_ipc", "rlopt.weight_sync.gpu_receivers", "VerifiedIpc"),
}
"""Of each `sync.backend` the receiver: its name in vLLM's registry, module and class."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and full shape of a tensor; the fields that vLLM's `ParamMeta` has."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class Source(Protocol):
    """The learner's weights under their Hugging Face names, in one order on every rank. vLLM's `WeightSource`.

    Iterating is a collective: ranks that share a parameter must go through it together.
    """

    def metadata(self) -> list[TensorSpec]: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


class Client(Protocol):
    """All engines at once, as the sender sees them; every call returns when all are done.

    vLLM's `VLLMWeightSyncClient`, and `verify`: compare what the engines received with the manifest, tensor name to digest.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def verify(self, manifest: Mapping[str, str]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """Carries a whole model to the engines. Called on every learner rank."""

    def send_weights(self) -> None: ...


class ShmSender:
    """Sends through files in shared memory, one bucket at a time; the file is gone when the engines have read it.

    `manifest` is that of the last sending.
    """

    def __init__(self, source: Source, client: Client, is_sender: bool, bucket_bytes: int, verify: bool) -> None:
        self._source, self._client, self._is_sender, self._bucket_bytes = source, client, is_sender, bucket_bytes
        self._verify = verify
        self.manifest: dict[str, str] = {}
        if is_sender:
            client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        if not self._is_sender:
            for _ in self._source:  # the gathering is a collective
                pass
            return
        self._client.start_weight_update()
        self.manifest = {}
        copies = ((name, tensor.detach().to("cpu", copy=True).contiguous()) for name, tensor in self._source)
        for bucket in in_buckets(copies, self._bucket_bytes, lambda copy: copy[1].nbytes):
            info = write_bucket(bucket)
            self.manifest |= {name: digest(tensor) for name, tensor in bucket}
            try:
                self._client.update_weights(info)
            finally:
                Path(info["path"]).unlink()
        if self._verify:
            self._client.verify(self.manifest)
        self._client.finish_weight_update()


def in_buckets(items: Iterable[T], limit: int, nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """`items` in order, in lists of at most `limit` bytes, or of one item where that alone is larger."""
    bucket: list[T] = []
    size = 0
    for item in items:
        if bucket and size + nbytes(item) > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += nbytes(item)
    yield bucket


def write_bucket(tensors: list[tuple[str, Tensor]]) -> dict[str, Any]:
    """Write `tensors` to a new file in shared memory. Returns what the receiver needs to read it, as plain types."""
    return {
        "path": write_shared(b"".join(_raw(tensor) for _, tensor in tensors)),
        "names": [name for name, _ in tensors],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        "shapes": [list(tensor.shape) for _, tensor in tensors],
    }


def write_shared(data: bytes) -> str:
    """Write to a new file in shared memory (`/dev/shm`, or in the temporary folder where that has no room) and return its path.

    Raises:
        RloptError: neither has room.
    """
    shared, here = Path("/dev/shm"), Path(tempfile.gettempdir())
    for folder in (shared, here) if os.access(shared, os.W_OK) else (here,):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=shared_prefix(), delete=False) as file:
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                Path(file.name).unlink()
                if error.errno not in FULL:
                    raise
                continue
        return file.name
    raise RloptError(f"sync.bucket_mib: {len(data) / 2**20:.0f} MiB fit neither into /dev/shm nor into {here}; make room there")


def read_bucket(path: str, names: list[str], dtypes: list[str], shapes: list[list[int]]) -> list[tuple[str, Tensor]]:
    """The tensors that `write_bucket` wrote, copied."""
    flat = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
    tensors, start = [], 0
    for name, dtype_name, shape in zip(names, dtypes, shapes, strict=True):
        spec = TensorSpec(name, getattr(torch, dtype_name), tuple(shape))
        tensors.append((name, flat[start : start + spec.nbytes].view(spec.dtype).reshape(shape)))
        start += spec.nbytes
    return tensors


def digest(tensor: Tensor) -> str:
    """A hash of the bytes of a tensor on CPU."""
    return xxhash.xxh3_128_hexdigest(_raw(tensor))


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on CPU, not copied where it is contiguous."""
    return tensor.flatten().view(torch.uint8).numpy().data


def difference(sent: Mapping[str, str], received: Mapping[str, str]) -> str | None:
    """How the received tensors differ from those sent, or None; both are name to digest."""
    missing = [name for name in sent if name not in received]
    changed = [name for name in sent if name in received and received[name] != sent[name]]
    unknown = [name for name in received if name not in sent]
    for names, what in ((missing, "did not arrive"), (changed, "arrived changed"), (unknown, "arrived and was not sent")):
        if names:
            return f"{names[0]} {what}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
    return None


def register() -> None:
    """Make `RECEIVERS` known to vLLM, and name its shared memory. Named in the entry points, so that each of vLLM's processes
    calls it.
    """
    name_shared_memory()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name, module, receiver in RECEIVERS.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, receiver)
