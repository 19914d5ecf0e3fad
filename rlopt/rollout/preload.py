"""Imported by the fork server, or by the server of `cpu_fork`, before processes of an engine on CPU are forked from it."""

import gc
import os
from importlib import import_module

from rlopt.core.garbage import collect_seldom

collect_seldom()
# vLLM compiles its sampler where it is imported without this, with a C++ compiler, and is slower for it here.
before = os.environ.get("TORCHDYNAMO_DISABLE")
os.environ["TORCHDYNAMO_DISABLE"] = "1"
for name in (
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.worker.cpu_worker",
    "rlopt.rollout.cpu_sampler",
    "rlopt.rollout.scheduler",
    "rlopt.rollout.worker",
):
    import_module(name)
if before is None:
    del os.environ["TORCHDYNAMO_DISABLE"]
gc.freeze()  # forked processes then share these objects
