"""The environment of workers."""

import os
from collections.abc import Mapping

from rlopt.config.sections import ClusterConfig


def environment(config: ClusterConfig) -> dict[str, str]:
    """The environment of every worker: no telemetry, thread counts, and on a local cluster only loopback addresses."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1" if config.cpu_threads == "auto" else str(config.cpu_threads),  # workers on CPU set their own
    }
    if config.address == "local":
        env |= {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    return env


def adopt(variables: Mapping[str, str]) -> None:
    """Take over these variables in a fork. Only what changed: a process whose environment was replaced cannot set its title."""
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})
