"""The processes of an engine on CPU, forked from one that has imported vLLM.

An engine is two processes: the Ray worker, and vLLM's scheduler with the model. (Tensor parallelism adds one a part
of the model.) On CPU vLLM spawns one from the other and each imports vLLM anew, seven seconds every time. Here a server imports
it (`preload`) while the worker does: `multiprocessing.forkserver`, with one thread, and nothing computed yet. The scheduler is
forked from that server and the parts of a model from the scheduler, as vLLM itself does where models run on GPUs.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any


class _Context(ForkServerContext):
    """Processes with the environment of the moment they are made: the server has that of its own start."""

    def Process(self, *, target: Callable[..., None], kwargs: Mapping[str, Any], name: str) -> Any:  # type: ignore[override]
        return super().Process(target=_begin, args=(dict(os.environ), target, kwargs), name=name)


def _begin(environment: dict[str, str], target: Callable[..., None], kwargs: Mapping[str, Any]) -> None:
    """In the scheduler: as if it had been spawned, but that it forks the parts of a model, and ends with who asked for it.

    Ray ends an actor's children with it, and does not know that the scheduler is one of them.
    """
    from vllm.v1.executor import multiproc_executor

    # Only changed variables: a process whose environment was replaced cannot set its title.
    os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    target(**kwargs)


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # the model ends with its scheduler


def prepare() -> None:
    """Start the server, which imports while the caller continues. `OMP_NUM_THREADS` must be set: it is read on import."""
    multiprocessing.set_forkserver_preload(["rlopt.rollout.preload"])
    forkserver.ensure_running()


def use() -> None:
    """Make vLLM fork the engines that this process starts."""
    from vllm.v1.engine import utils

    utils.get_mp_context = _Context
