"""Ray workers on this machine's CPUs, forked from one process that has imported what they need.

A worker that starts anew imports Ray twice (once to set its environment), then torch, and vLLM or DeepSpeed: six to ten
seconds of a core for each, and an engine's processes import once more. The server imports all of it once, with one thread,
while the driver gets ready; a fork of it takes milliseconds. Workers on GPUs and on joined clusters start Ray's own way.
"""

import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from rlopt.cluster import leftovers
from rlopt.cluster.environment import adopt, environment
from rlopt.cluster.fork_client import ADDRESS as ADDRESS
from rlopt.cluster.fork_client import JOB
from rlopt.config.sections import ClusterConfig
from rlopt.core.garbage import collect_seldom

FIRST = "RLOPT_FORK_FIRST"

running: list[int] = []
"""The process number of this command's server, where there is one."""

CLIENT = str(Path(__file__).with_name("fork_client.py"))


@contextmanager
def imported(config: ClusterConfig, *modules: str) -> Iterator[None]:
    """In here workers of our own cluster on this machine's CPUs are forked from a process that imports `modules`.

    Nothing is waited for: a worker that is asked for too early comes when the imports are done. If an import fails there is no
    server, and a worker, started anew, says why.
    """
    os.environ.pop(ADDRESS, None)  # of a command that started this one
    if config.address != "local":
        yield
        return
    if config.gpus_per_engine or config.gpus_per_learner:
        with leftovers.swept():
            yield
        return
    # Short, because a socket's path has 107 characters.
    short = tempfile.TemporaryDirectory(prefix=f"rlopt-{leftovers.mark()}-", dir="/tmp", ignore_cleanup_errors=True)
    with leftovers.swept(), short as folder:
        path = f"{folder}/fork"
        server = _start(path, environment(config), modules)
        os.environ[ADDRESS] = path
        running.append(server.pid)
        try:
            yield
        finally:
            running.clear()
            del os.environ[ADDRESS]
            server.kill()
            server.communicate()


def variables(first: str) -> dict[str, str]:
    """Environment variables of a worker that calls `first`, a `module:function`, before Ray, while it has one thread.

    Its temporary files, of which vLLM leaves some behind, are in the folder of the server, which goes with it.
    """
    return {FIRST: first} | ({"TMPDIR": str(Path(os.environ[ADDRESS]).parent)} if ADDRESS in os.environ else {})


def _start(path: str, variables: dict[str, str], modules: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        return subprocess.Popen(
            [sys.executable, "-m", "rlopt.cluster.fork_server", str(listener.fileno()), *modules],
            # What libraries read when they are imported. Ray's mode is its default for a cluster of one's own.
            env={"RAY_AUTH_MODE": "token", **os.environ, **variables, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            | leftovers.marking(leftovers.mark()),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # signals that end a job reach our whole process group
        )


def _serve(listener: socket.socket) -> tuple[dict[str, Any], socket.socket]:
    """Fork a worker for each request. Returns in a worker, with its request and the connection on which its client waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers that end are not waited for
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while 0 not in [key.fileobj for key, _ in selector.select()]:
            client, _ = listener.accept()
            with closing(client):
                try:
                    request, streams = _receive(client)
                    client.sendall(b"f")
                except (OSError, ValueError):
                    continue  # the client was killed meanwhile
                if os.fork() == 0:
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    return request, client.dup()
                for stream in streams:
                    os.close(stream)
    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)  # the driver is gone
    os._exit(0)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as message:
        return json.loads(message.read(int.from_bytes(header, "big"))), streams


def _become(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Be the process that this command would have started."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends the process groups of workers, and the server's is not one
    os.chdir(folder)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    adopt(environment)
    tempfile.tempdir = None  # as the server's environment had it
    if first := os.environ.get(FIRST):
        module, _, function = first.partition(":")
        getattr(import_module(module), function)()
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def _main(listener: int, modules: list[str]) -> None:
    # What Ray reads when it is imported, and otherwise sets for each worker. A worker ends once the process with this number
    # has ended: that of Ray's own is not known yet.
    os.environ.update(RAY_JOB_ID=JOB, RAY_RAYLET_PID=str(os.getpid()))
    leftovers.name_shared_memory()
    collect_seldom()
    for module in ("ray._private.workers.default_worker", *modules):
        import_module(module)
    gc.freeze()  # forks then share these objects
    with socket.socket(fileno=listener) as waiting:
        request, connection = _serve(waiting)
    with connection:
        _become(**request)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
