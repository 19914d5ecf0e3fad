"""What Ray runs to start a worker on this machine: it has `fork_server` fork one. It imports nothing but Python's own modules.

Where no server answers, Ray's own script starts the worker, as if this one were not there.
"""

import json
import os
import socket
import sys
from importlib.util import find_spec

ADDRESS = "RLOPT_FORK_SERVER"
"""Environment variable with the path of the server's socket."""

JOB = "01000000"
"""The first job of a cluster. Ray reads the job when it is imported, which the server does before there is one."""

CONTEXT = "--serialized-runtime-env-context="


def main(arguments: list[str]) -> None:
    """Start a worker with the arguments of Ray's `setup_worker.py`; returns when the worker has ended."""
    contexts = [json.loads(argument.removeprefix(CONTEXT)) for argument in arguments if argument.startswith(CONTEXT)]
    context = contexts[0] if contexts else {}
    another_python = context.get("command_prefix") or context.get("py_executable", sys.executable) != sys.executable
    if another_python or os.environ.get("RAY_JOB_ID") != JOB or ADDRESS not in os.environ:
        start_anew(arguments)
    command = [argument for argument in arguments if not argument.startswith((CONTEXT, "--language="))]
    request = {"command": command, "environment": {**os.environ, **context.get("env_vars", {})}, "folder": os.getcwd()}
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(os.environ[ADDRESS])
            socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(message)
            forked = server.recv(1)
        except OSError:
            forked = b""
        if not forked:
            start_anew(arguments)
        server.recv(1)  # the worker keeps its end of the connection open


def start_anew(arguments: list[str]) -> None:
    """Become Ray's own script."""
    ray = find_spec("ray")
    assert ray, "who else started this?"
    script = os.path.join(os.path.dirname(str(ray.origin)), "_private", "workers", "setup_worker.py")
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
