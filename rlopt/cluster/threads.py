"""How many threads each worker on a CPU computes with (`cluster.cpu_threads`). Pure arithmetic, but for `cores`."""

import os
from typing import Literal

PARAMETERS_A_THREAD = 3_000_000
"""Below that many for each thread, threads cost more than they compute: `tiny_s` (0.13M) samples a third slower with two."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Asked = int | Literal["auto"]


def engine_threads(asked: Asked, parameters: int, workers: int, cores: int) -> int:
    """Threads of each engine, where `workers` engines and learner ranks share `cores`, for a model of so many parameters.

    `auto`: its share of the cores.
    """
    return _threads(parameters, cores // workers, cores) if asked == "auto" else asked


def learner_threads(asked: Asked, parameters: int, workers: int, cores: int) -> int:
    """As `engine_threads`, of each learner rank. `auto`: twice its share.

    A learner passes over a token four times, forwards, twice backwards and for the reference, where an engine does once. So
    engines are idle more often, and the learner then uses their cores.
    """
    return _threads(parameters, 2 * cores // workers, cores) if asked == "auto" else asked


def _threads(parameters: int, share: int, cores: int) -> int:
    return max(1, min(cores, share, parameters // PARAMETERS_A_THREAD))
