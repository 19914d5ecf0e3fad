"""Imported by the server of `cpu_fork`, before an engine's processes are forked from it; for nothing else."""

import gc
from importlib import import_module

from rlopt.core.garbage import collect_seldom

collect_seldom()
for name in ("vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "rlopt.rollout.cpu_sampler", "rlopt.rollout.scheduler"):
    import_module(name)
gc.freeze()  # forked processes then share these objects
