"""The sender of each backend: shared memory, NCCL, CUDA IPC."""

from typing import Any

from rlopt.weight_sync.fingerprints import NotedSource, VerifyingClient
from rlopt.weight_sync.group_sender import GroupClient, GroupSender
from rlopt.weight_sync.sender import Client, Sender, ShmSender, Source


def make_sender(
    backend: str,
    source: Source,
    client: GroupClient,
    rank: int,
    bucket_bytes: int,
    address: tuple[str, int],
    receivers: int,
    verify: bool,
    deadline_s: float,
) -> Sender:
    """The sender of `backend`, connected.

    Args:
        backend: `shm`, `nccl` or `ipc`.
        rank: of this learner; rank 0 sends.
        bucket_bytes: memory for weights that are gathered and not yet sent; the largest tensor if that needs more.
        address: host and port where an NCCL rendezvous may meet.
        receivers: engine processes in all.
        verify: compare what was received with what was sent.
        deadline_s: for one sending (`nccl`).
    """
    bucket_bytes = max([bucket_bytes, *(spec.nbytes for spec in source.metadata())])
    if backend == "shm":
        return ShmSender(source, client, rank == 0, bucket_bytes, verify)
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    info = gpu_init_info(backend, rank, bucket_bytes, address, receivers)
    talks: Client = client
    if verify and rank == 0:
        source = NotedSource(source)
        talks = VerifyingClient(client, source.noted)

    def open_group(source: Source) -> Any:
        return WeightTransferTrainerFactory.trainer_init(info, client=talks, source=source)  # type: ignore[arg-type]

    if backend == "ipc":
        sender: Sender = open_group(source)
        return sender
    return GroupSender(open_group, source, client, deadline_s)


def gpu_init_info(backend: str, rank: int, bucket_bytes: int, address: tuple[str, int], receivers: int) -> Any:
    """The settings of vLLM's own sender of `backend`; the arguments are those of `make_sender`."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    host, port = address
    return NCCLTrainerInitInfo(host, port, 1 + receivers, packed_buffer_size_bytes=bucket_bytes, rank=rank)
