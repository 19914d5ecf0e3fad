"""Ray on this machine, for one command: started without what nobody needs, watched, and ended with all that it started."""

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import ray

from rlopt.cluster import fork_server, leftovers
from rlopt.cluster.watch import Watch

LEAN = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
"""No idle workers: each would import Ray twice, and all of ours are actors with an environment of their own."""

QUIET = {"task_events_report_interval_ms": 0, "task_events_shutdown_flush_timeout_ms": 100}
"""No record of tasks, which Ray's dashboard would show; without GCS the driver would wait for it at the end."""

UNMEASURED = {"enable_metrics_collection": False, "event_stats": False, "debug_dump_period_milliseconds": 0}
"""No metrics of Ray's own processes: nobody reads them here, and with them the raylet grows by half a MiB a minute."""

END_S = 20.0
"""Seconds that Ray has to end by itself."""

COMMON: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "rlopt"}
"""Arguments of `ray.init`, on any cluster."""


TOO_SLOW = "timed out during startup"
"""In what Ray says when its parts are not there within 30 seconds, which nothing can change."""


def start_patiently(start: Callable[[], object], clear: Callable[[], None]) -> None:
    """Start Ray; once more, after `clear`, where a busy machine was too slow the first time.

    Raises:
        Exception: what Ray raised, the second time, or for another reason.
    """
    try:
        start()
    except Exception as error:
        if TOO_SLOW not in str(error):
            raise
        clear()
        start()


class OwnRay:
    """Starting it is making it."""

    def __init__(self) -> None:
        _start_few_processes()
        # Ray replaces a loopback address by the machine's own and then listens on every interface; here it may not.
        ray._private.services.resolve_ip_for_localhost = lambda address: address
        # Signals that end a job reach our whole process group. In their own session Ray's processes, and the workers
        # that they start, go on until the driver has saved and ends them.
        ray._private.services.ConsolePopen = partial(subprocess.Popen, start_new_session=True)
        if fork_server.ADDRESS in os.environ:
            ray._private.ray_constants.SETUP_WORKER_FILENAME = fork_server.CLIENT
        os.environ.update(leftovers.marking(leftovers.mark()))
        system = LEAN | QUIET | UNMEASURED
        try:
            start_patiently(
                lambda: ray.init(address="local", _node_ip_address="127.0.0.1", _system_config=system, **COMMON),
                self._clear,
            )
        finally:
            del os.environ[leftovers.MARK]  # W&B's process, which the driver starts, may outlive what is swept
        node = ray._private.worker._global_node
        self._session = Path(node.get_session_dir_path())
        (self._session / leftovers.OURS).write_text(f"rlopt-{leftovers.mark()}-")
        leftovers.remove_sessions(self._session.parent)
        parts = node.all_processes
        self._watch = Watch({f"Ray's {name}": psutil.Process(parts[name][0].process.pid) for name in ("gcs_server", "raylet")})

    def fault(self) -> str | None:
        """What is wrong with Ray's own processes, or None."""
        return self._watch.fault()

    def end(self) -> None:
        """End it and all that it started, also where it does not answer."""
        fault = self._watch.fault(patience_s=0.0)
        if fault:
            self._sweep()  # first: Ray would wait for what is dead or stopped, for minutes
        impatient = threading.Timer(END_S, self._sweep)
        impatient.start()
        try:
            ray.shutdown()
        finally:
            impatient.cancel()
        self._sweep()
        if not fault:  # its logs say why
            shutil.rmtree(self._session, ignore_errors=True)

    def _clear(self) -> None:
        ray.shutdown()
        self._sweep()

    def _sweep(self) -> None:
        leftovers.sweep(leftovers.mark(), spare=fork_server.running)


@cache
def _start_few_processes() -> None:
    """Leave out what Ray starts beside a cluster: autoscaler, log monitor and dashboard. Nothing here asks one of them; each
    imports for a second of CPU time.
    """
    params = partial(ray._private.parameter.RayParams, no_monitor=True, include_log_monitor=False)
    ray._private.parameter.RayParams = params
    ray._private.services.start_api_server = lambda *_, **__: ("", None)
