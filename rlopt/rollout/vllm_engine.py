"""How vLLM is set up: its environment, its arguments, on CPU and on GPU."""

import ctypes
import inspect
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rlopt.cluster.leftovers import name_shared_memory
from rlopt.cluster.threads import cores, engine_threads
from rlopt.config.passthrough import refuse_unknown
from rlopt.config.sections import ClusterConfig, ModelConfig, RolloutConfig
from rlopt.core.errors import RloptError, first_line
from rlopt.models.loading import load_tokenizer, shape_of
from rlopt.rollout import cpu_fork
from rlopt.weight_sync.sender import RECEIVERS

PauseMode = Literal["wait", "keep", "abort"]


CANARY_PLACES = 4
"""Sequences beside `rollout.max_num_seqs`, so that canary prompts need not wait for samples to end."""


SCHEDULER = "rlopt.rollout.scheduler.make_scheduler"
CPU_WORKER, GPU_WORKER = "rlopt.rollout.cpu_sampler.CpuWorker", "rlopt.weight_sync.shm_receiver.Receipts"


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know beside `RolloutConfig`.

    Attributes:
        in_flight: what becomes of samples when weights arrive.
        initial_version: of the weights that it loads; None where others arrive before anything is sampled.
    """

    folder: Path
    dtype: str
    device: str
    backend: str
    max_model_len: int
    threads: int
    seed: int
    in_flight: PauseMode
    initial_version: int | None

    @classmethod
    def without_learner(
        cls, folder: Path, model: ModelConfig, cluster: ClusterConfig, engines: int, max_model_len: int, seed: int
    ) -> "EngineConfig":
        """An engine that keeps the weights of `folder`; for commands that only sample."""
        gpus = cluster.gpus_per_engine
        return cls(
            folder=folder,
            dtype=model.resolved_dtype(gpus),
            device="cuda" if gpus else "cpu",
            backend="nccl" if gpus else "shm",  # vLLM needs one; no weights are sent
            max_model_len=max_model_len,
            threads=1 if gpus else engine_threads(cluster.cpu_threads, shape_of(folder).parameters, engines, cores()),
            seed=seed,
            in_flight="wait",
            initial_version=0,
        )


def set_environment(engine: EngineConfig, config: RolloutConfig) -> None:
    """Set what vLLM reads from the environment, before it is imported.

    Raises:
        RloptError: libnuma is missing, which vLLM for CPUs needs.
    """
    name_shared_memory()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if engine.device == "cpu":
        need_libnuma()
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(engine.threads)
        # Kernels that are kept, one for each shape of a batch. The usual 1,024 take 300 MiB with a tiny model, which samples no
        # faster.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        if config.tensor_parallel == 1:
            # vLLM then keeps the model in its scheduler's process. Two would wait for each other at every token, and
            # each would keep a core busy while it waits.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        cpu_fork.prepare()
    elif engine.dtype == "float32":
        os.environ["TRITON_F32_DEFAULT"] = "ieee"  # else attention rounds its inputs to TF32, and the learner's does not
    if engine.backend == "ipc":
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # vLLM passes CUDA handles on as pickles, to itself


ABOVE = "See root cause above"
"""In what vLLM raises when its own process has failed; the reason stands in the log alone."""

_RAISED = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception))(?:: (\S.*))?$")
_LOGGED = re.compile(r"^.*\[\w+\.py:\d+\] ")
"""What vLLM writes before each line of a log."""


def root_cause(log: str) -> str | None:
    """The last exception that a log names, but for vLLM's own that refers to it; of one without a word, the line that raised
    it.
    """
    found, before = None, ""
    for line in (_LOGGED.sub("", line) for line in log.splitlines()):
        raised = _RAISED.search(line)
        if raised and ABOVE not in line:
            found = f"{raised[1]}: {(raised[2] or before).strip()}"
        if line.strip(" ^~"):  # else it only marks a place in the one before
            before = line
    return first_line(found) if found else None


def _said() -> str:
    """The end of what this process and its children have written, where that goes to files, as Ray has it."""
    logs = [Path(f"/proc/self/fd/{number}").resolve() for number in cpu_fork.STREAMS]
    return "\n".join(log.read_text(errors="replace")[-100_000:] for log in logs if log.is_file())


async def start_engine(engine: EngineConfig, config: RolloutConfig) -> tuple[Any, Any]:
    """vLLM's `AsyncLLM`, loaded, and the model's tokenizer.

    Raises:
        RloptError: vLLM's own process did not start, with the reason that it wrote into its log.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    if engine.device == "cpu":
        cpu_fork.use()
    refuse_unknown(config.vllm, {field.name for field in fields(AsyncEngineArgs)})
    arguments = {
        "model": str(engine.folder),
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": config.max_num_seqs + CANARY_PLACES,
        "tensor_parallel_size": config.tensor_parallel,
        "seed": engine.seed,
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from, after temperature and top-p
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "scheduler_cls": SCHEDULER,
        "worker_extension_cls": CPU_WORKER if engine.device == "cpu" else GPU_WORKER,
        "weight_transfer_config": {"backend": RECEIVERS[engine.backend][0]},
    }
    try:
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments | _device_arguments(engine, config) | config.vllm))
    except RuntimeError as error:
        if ABOVE not in str(error):
            raise
        raise RloptError(f"vLLM's engine did not start: {root_cause(_said()) or first_line(error)}") from error
    await llm.collective_rpc("count_steps")
    if engine.device == "cpu":
        await llm.collective_rpc("use_cpu_sampler")
    return llm, load_tokenizer(engine.folder)


def _device_arguments(engine: EngineConfig, config: RolloutConfig) -> dict[str, Any]:
    executor = {"distributed_executor_backend": "uni"} if config.tensor_parallel == 1 else {}
    if engine.device != "cpu":
        return {"gpu_memory_utilization": config.gpu_memory_share, "enable_sleep_mode": config.sleep} | executor
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        # A prompt must not be cut in two: on CPU a seeded request then asks its generator for an offset it lacks.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(engine.max_model_len, 4096),
    } | executor


class Mortal:
    """vLLM's engine. A call that finds its process dead ends this one too: the pool replaces both, and knows no third state."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._llm, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def called(*arguments: Any, **named: Any) -> Any:
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                return await found(*arguments, **named)
            except EngineDeadError:
                os._exit(1)  # as the worker's `_die_with_engine` is about to

        return called


def need_libnuma() -> None:
    """Check for libnuma: without it vLLM fails minutes later with an error that does not name it."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise RloptError(
            f"vLLM for CPUs needs libnuma ({error}); apt-get install libnuma1, dnf install numactl-libs"
        ) from error
