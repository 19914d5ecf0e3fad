"""Sampling: one vLLM engine per `RolloutWorker`. `fleet` has all of them as the loop sees them.

A worker turns prompts into groups that are complete: sampled, versioned by the engine itself, and rewarded. It never
decodes and encodes again; the ids that come back are the ids trained on.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from rlopt.cluster.actors import Cluster, Workers, environment
from rlopt.config.sections import ClusterConfig, RewardConfig, RolloutConfig
from rlopt.core.errors import Fault, RloptError
from rlopt.core.garbage import collect_seldom
from rlopt.core.requests import Answer, Continuation, EngineLogprobs, SampleRequest, SamplingSpec, sample_seed
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.rewards.pool import Question, RewardPool, Scored
from rlopt.rollout import cpu_fork
from rlopt.weight_sync.sender import SHM_BACKEND, write_shared

T = TypeVar("T")
PauseMode = Literal["wait", "keep", "abort"]

CANARY_PLACES = 4
"""Sequences beside `rollout.max_num_seqs`, so that canary prompts need not wait for samples to end."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know beside `RolloutConfig`.

    Attributes:
        in_flight: what becomes of samples when weights arrive.
        learns: weights will arrive, before anything is sampled; those that it loads are no version of theirs.
    """

    folder: Path
    dtype: str
    device: str
    backend: str
    max_model_len: int
    threads: int
    seed: int
    in_flight: PauseMode
    learns: bool


class RolloutWorker:
    """One vLLM engine and the reward processes beside it. A plain class; `cluster` makes it a Ray actor."""

    def __init__(self, engine: EngineConfig, config: RolloutConfig, reward: RewardConfig, group_size: int) -> None:
        self._engine_config, self._config, self._group_size = engine, config, group_size
        self._rewards = RewardPool(reward.fn, reward.weights, reward.workers, reward.timeout_s, reward.on_error)
        # A window's requests come all at once; handing them over as places come free keeps the first batch first.
        self._places = asyncio.Semaphore(config.max_num_seqs)
        self._requests = 0
        self._in_flight = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._updating = False

    async def start(self) -> None:
        """Load the model. Returns when the engine answers."""
        engine, config = self._engine_config, self._config
        collect_seldom()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        on_cpu = engine.device == "cpu"
        if on_cpu:
            _need_libnuma()
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(engine.threads)
            if config.tensor_parallel == 1:
                # vLLM then keeps the model in its scheduler's process. Two would wait for each other at every token, and
                # each would keep a core busy while it waits.
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles its sampler, with a C++ compiler, and is slower for it here
            cpu_fork.prepare()
        elif engine.dtype == "float32":
            os.environ["TRITON_F32_DEFAULT"] = "ieee"  # else attention rounds its inputs to TF32, and the learner's does not
        if engine.backend == "ipc":
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # vLLM passes CUDA handles on as pickles, to itself
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.tokenizers import get_tokenizer
        from vllm.v1.engine.async_llm import AsyncLLM

        device_args: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_share, "enable_sleep_mode": config.sleep}
        if on_cpu:
            cpu_fork.use()
            device_args = {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
                # A prompt must not be cut in two: on CPU a seeded request then asks its generator for an offset it lacks.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(engine.max_model_len, 4096),
            }
        if config.tensor_parallel == 1:
            device_args["distributed_executor_backend"] = "uni"
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(engine.folder),
                dtype=engine.dtype,  # type: ignore[arg-type]
                max_model_len=engine.max_model_len,
                max_num_seqs=config.max_num_seqs + CANARY_PLACES,
                tensor_parallel_size=config.tensor_parallel,
                seed=engine.seed,
                logprobs_mode="processed_logprobs",  # of the distribution sampled from, after temperature and top-p
                enable_prefix_caching=False,
                disable_log_stats=True,
                worker_extension_cls="rlopt.weight_sync.shm_receiver.Receipts",
                weight_transfer_config={"backend": SHM_BACKEND if engine.backend == "shm" else engine.backend},  # type: ignore[arg-type]
                **device_args,
            )
        )
        self._tokenizer = get_tokenizer(str(engine.folder))
        self._watch = asyncio.create_task(self._die_with_engine())

    async def _die_with_engine(self) -> None:
        """Where the engine's processes die, so does this one: vLLM would raise for some calls, and leave others waiting."""
        while not self._llm.errored:
            await asyncio.sleep(0.5)
        os._exit(1)

    async def sample(self, request: SampleRequest) -> Group:
        """`group_size` rewarded samples of a prompt. Samples that the reward leaves out are missing from their group."""
        self._in_flight += 1
        if self._in_flight == 1:
            self._busy_since = time.monotonic()
        try:
            return await self._group(request)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._busy_s += time.monotonic() - self._busy_since

    async def canary(self, texts: list[tuple[int, ...]]) -> list[EngineLogprobs]:
        """What the engine says of every token of each text after its first, at temperature 1, and the version that says so.

        Reading takes one step of the engine, where speaking would take one per token among all that it is sampling.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        outputs = await asyncio.gather(*(self._run(text, params) for text in texts))
        return [
            EngineLogprobs(
                np.array(output.prompt_logprobs.logprobs, np.float32), int(output.outputs[0].weight_versions[-1].version)
            )
            for output in outputs
        ]

    async def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        """`count` answers that go on from each opening, no longer as a whole than any other answer. No reward."""
        return list(await asyncio.gather(*(self._answers(opening, count) for opening in openings)))

    async def grade(self, answers: list[tuple[Prompt, str]]) -> list[Scored | Fault | None]:
        """What the reward function says of each text."""
        calls = (asyncio.to_thread(self._rewards.score, [_question(prompt, text)]) for prompt, text in answers)
        return [one for (one,) in await asyncio.gather(*calls)]

    async def sleep(self) -> None:
        """Stand still, with the weights in the host's memory and no KV cache; a CPU engine has nothing to give back."""
        await self._llm.sleep(level=1, mode="wait")  # level 2 drops the weights: then a sync that fails leaves nothing behind

    async def wake(self) -> None:
        """Be as before `sleep`."""
        await self._llm.wake_up()

    async def busy_s(self) -> float:
        """Seconds since the start with at least one request in flight."""
        return self._busy_s + (time.monotonic() - self._busy_since if self._in_flight else 0.0)

    async def _group(self, request: SampleRequest) -> Group:
        """The samples of a prompt, or while they show no signal those of its spares; the last spare is taken as it is."""
        group = await self._samples(request)
        for number, spare in enumerate(request.spares, 1):
            if len({sample.reward for sample in group.samples}) > 1:
                break
            group = replace(await self._samples(spare), refills=number)
        return group

    async def _samples(self, request: SampleRequest) -> Group:
        sampling, limit = request.sampling or self._manner(self._group_size), self._config.max_new_tokens
        seeds = [sample_seed(self._engine_config.seed, request.prompt.id, request.draw, i) for i in range(sampling.count)]
        outputs = await asyncio.gather(*(self._generate(request.prompt.token_ids, seed, sampling, limit) for seed in seeds))
        texts = [self._tokenizer.decode(output.token_ids, skip_special_tokens=True) for output in outputs]
        prompt = request.prompt
        scored = await asyncio.to_thread(self._rewards.score, [_question(prompt, text) for text in texts])
        samples = [
            self._sample(prompt, output, text, score)
            for output, text, score in zip(outputs, texts, scored, strict=True)
            if isinstance(score, Scored)
        ]
        return Group(prompt, tuple(samples), faults=tuple(fault for fault in scored if isinstance(fault, Fault)))

    async def _answers(self, opening: Continuation, count: int) -> list[Answer]:
        start, limit = opening.prompt + opening.begun, self._config.max_new_tokens - len(opening.begun)
        seeds = [sample_seed(self._engine_config.seed, opening.id, "0", i) for i in range(count)]
        outputs = await asyncio.gather(*(self._generate(start, seed, self._manner(count), limit) for seed in seeds))
        wholes = [opening.begun + tuple(output.token_ids) for output in outputs]
        return [
            Answer(whole, self._tokenizer.decode(whole, skip_special_tokens=True), output.finish_reason)
            for whole, output in zip(wholes, outputs, strict=True)
        ]

    def _sample(self, prompt: Prompt, output: Any, text: str, score: Scored) -> Sample:
        spans = output.weight_versions
        return Sample(
            prompt_id=prompt.id,
            token_ids=np.array(output.token_ids, np.int32),
            action_mask=np.ones(len(output.token_ids), bool),
            logprobs=np.array(output.logprobs.logprobs, np.float32),
            versions=np.repeat([self._version(s) for s in spans], [s.end - s.start for s in spans]).astype(np.int32),
            text=text,
            finish=output.finish_reason,
            reward=score.reward,
            parts=score.parts,
        )

    def _version(self, span: Any) -> int:
        return 0 if span.version == "default" and not self._engine_config.learns else int(span.version)

    def _manner(self, count: int) -> SamplingSpec:
        return SamplingSpec(count, self._config.temperature, self._config.top_p)

    async def _generate(self, token_ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Any:
        """One response, when its turn has come; again from its beginning where new weights ended it."""
        async with self._places:
            while True:
                output = await self._speak(token_ids, seed, sampling, limit)
                if output.finish_reason != "abort":
                    return output

    async def _speak(self, token_ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=limit,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return (await self._run(token_ids, params)).outputs[0]

    async def _run(self, token_ids: tuple[int, ...], params: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        self._requests += 1
        prompt = {"prompt_token_ids": list(token_ids)}
        try:
            return [output async for output in self._llm.generate(prompt, params, str(self._requests))][-1]
        except EngineDeadError:
            os._exit(1)  # as `_die_with_engine` is about to

    # The weight-transfer verbs; vLLM's own, called by a sender through `EngineClient`, and `received`.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        if self._updating:  # the one before failed its check; it ends without a version, and paused
            await self._llm.finish_weight_update()
        in_flight = self._engine_config.in_flight
        await self._llm.pause_generation(mode=in_flight, clear_cache=in_flight != "keep")
        await self._llm.start_weight_update()
        self._updating = True

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        try:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info))
        except BaseException:
            self._updating = False  # vLLM ends a failed update by itself
            raise

    async def update_weights_from(self, update_info: dict[str, Any], data: np.ndarray | None) -> None:
        """As `update_weights`, for workers not all on the learner's node: `data` are the bytes of the bucket, None on it."""
        if data is None:
            await self.update_weights(update_info)
            return
        path = write_shared(data.tobytes())
        try:
            await self.update_weights({**update_info, "path": path})
        finally:
            os.unlink(path)

    async def received(self) -> dict[str, str]:
        """Tensor name to digest, of what this update delivered to the first of the engine's processes."""
        receipts: list[dict[str, str]] = await self._llm.collective_rpc("received_weights")
        return receipts[0]

    async def finish_weight_update(self, weight_version: str) -> None:
        await self._llm.finish_weight_update(weight_version)
        self._updating = False
        await self._llm.resume_generation()

    async def close(self) -> None:
        self._watch.cancel()
        self._rewards.close()
        self._llm.shutdown()


def _need_libnuma() -> None:
    """vLLM without it starts, and fails minutes later for reasons that do not name it."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise RloptError(
            f"vLLM for CPUs needs libnuma ({error}); apt-get install libnuma1, dnf install numactl-libs"
        ) from error


def spawner(
    cluster: Cluster, config: ClusterConfig, engine: EngineConfig, rollout: RolloutConfig, reward: RewardConfig, group_size: int
) -> Callable[[str, int], Workers]:
    """What makes the actors of engines under a name, not started yet."""
    gpus, env = config.gpus_per_engine * rollout.tensor_parallel, environment(config)

    def spawn(name: str, count: int) -> Workers:
        return cluster.workers(name, RolloutWorker, gpus, env, *[[engine, rollout, reward, group_size]] * count)

    return spawn


def _question(prompt: Prompt, text: str) -> Question:
    return Question(prompt.text, text, prompt.answer, prompt.columns)
