"""The processes of an engine on CPU, forked from one that has imported vLLM.

An engine is two processes: the Ray worker, and vLLM's scheduler with the model. (Tensor parallelism adds one a part
of the model.) On CPU vLLM spawns one from the other and each imports vLLM anew, seven seconds every time. Here the scheduler is
forked from `multiprocessing.forkserver`, which has one thread and has computed nothing yet, and the parts of a model from the
scheduler, as vLLM itself does where models run on GPUs. Reward processes are forked from that server too.

The server is a fork of the Ray worker, before Ray's threads, where that has imported everything (`cluster.fork_server`).
Elsewhere it imports everything itself, while the worker does (`preload`).
"""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from rlopt.cluster.environment import adopt


class _Context(ForkServerContext):
    """Processes with the environment and the logs of the moment they are made: the server has those of its own start."""

    def Process(self, *, target: Callable[..., None], kwargs: Mapping[str, Any], name: str) -> Any:  # type: ignore[override]
        logs = [os.readlink(f"/proc/self/fd/{number}") for number in STREAMS]
        return super().Process(target=_begin, args=(dict(os.environ), logs, target, kwargs), name=name)


STREAMS = (1, 2)
"""Standard output and standard error."""


def _begin(environment: dict[str, str], logs: list[str], target: Callable[..., None], kwargs: Mapping[str, Any]) -> None:
    """In the scheduler: as if it had been spawned, but that it forks the parts of a model, and ends with who asked for it.

    Ray ends an actor's children with it, and does not know that the scheduler is one of them.
    """
    from vllm.v1.executor import multiproc_executor

    for number, log in zip(STREAMS, logs, strict=True):
        with suppress(OSError), open(log, "ab", buffering=0) as file:  # what cannot be opened again stays the server's
            os.dup2(file.fileno(), number)
    adopt(environment)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch itself reads it when it is imported
    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    target(**kwargs)


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # the model ends with its scheduler


def fork_here() -> None:
    """Make the server a fork of this process, which has imported vLLM. Only while it has one thread."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    address: str = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        ended, alive = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(alive)
            with suppress(SystemExit):  # of its end
                forkserver.main(listener.detach(), ended, [])
            os._exit(0)
        os.close(ended)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive, pid


def prepare() -> None:
    """Start the server if there is none, which imports while the caller continues."""
    multiprocessing.set_forkserver_preload(["rlopt.rollout.preload"])
    forkserver.ensure_running()


def use() -> None:
    """Make vLLM fork the engines that this process starts."""
    from vllm.v1.engine import utils

    utils.get_mp_context = _Context
