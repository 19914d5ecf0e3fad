"""One vLLM engine in a worker. `engine_pool` has all of them, as the loop sees them.

A worker turns prompts into groups that are complete: sampled, versioned by the engine itself, and rewarded. It never
decodes and encodes again; the ids that come back are the ids trained on.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from rlopt.cluster import fork_server
from rlopt.cluster.actors import Workers
from rlopt.cluster.environment import environment
from rlopt.cluster.ray_cluster import Cluster
from rlopt.config.sections import ClusterConfig, RewardConfig, RolloutConfig
from rlopt.core.errors import Fault
from rlopt.core.garbage import collect_seldom
from rlopt.core.killable import StartMethod
from rlopt.core.requests import Answer, Continuation, EngineLogprobs, SampleRequest, SamplingSpec, sample_seed
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.environments.host import Hosts
from rlopt.rewards.pool import Question, RewardPool, Scored
from rlopt.rollout.episode_setup import EpisodeSetup
from rlopt.rollout.episodes import Episodes, Sizes, player
from rlopt.rollout.transcript import Spoken
from rlopt.rollout.vllm_engine import EngineConfig, Mortal, set_environment, start_engine
from rlopt.rollout.weight_receiver import WeightReceiver

T = TypeVar("T")


class RolloutWorker(WeightReceiver):
    """One vLLM engine and the reward processes beside it. A plain class; `cluster` makes it a Ray actor."""

    def __init__(
        self,
        engine: EngineConfig,
        config: RolloutConfig,
        reward: RewardConfig,
        group_size: int,
        episodes: EpisodeSetup | None = None,
    ) -> None:
        self._engine_config, self._config, self._reward, self._group_size = engine, config, reward, group_size
        self._setup = episodes
        self._stops = episodes.stops if episodes else []
        super().__init__(engine.in_flight)
        # A window's requests come all at once; handing them over as places come free keeps the first batch first.
        self._places = asyncio.Semaphore(config.max_num_seqs)
        self._requests = 0
        self._computing = 0
        self._busy_s = 0.0
        self._busy_since = 0.0

    async def start(self) -> None:
        """Load the model. Returns when the engine answers."""
        collect_seldom()
        set_environment(self._engine_config, self._config)
        self._rewards = self._graders(self._reward)
        hosts = Hosts(self._setup.env, self._start_method) if self._setup else None
        llm, self._tokenizer = await start_engine(self._engine_config, self._config)
        self._llm = Mortal(llm)
        self._episodes: Episodes | None = None
        if self._setup and hosts:
            sizes = Sizes(self._config.max_new_tokens, self._engine_config.max_model_len, self._config.max_num_seqs)
            seed, score = self._engine_config.seed, self._rewards.score
            self._episodes = player(self._setup, hosts, self._tokenizer, sizes, seed, self._turn, score)
        self._watch = asyncio.create_task(self._die_with_engine())

    def _graders(self, reward: RewardConfig) -> RewardPool:
        """The processes that score."""
        return RewardPool(reward.fn, reward.weights, reward.workers, reward.timeout_s, reward.on_error, self._start_method)

    @property
    def _start_method(self) -> StartMethod:
        """Of processes for the user's code: forked where there is a server to fork them."""
        return "forkserver" if self._engine_config.device == "cpu" else "spawn"

    async def _turn(self, token_ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Spoken:
        output = await self._generate(token_ids, seed, sampling, limit)
        ids = np.array(output.token_ids, np.int32)
        return Spoken(ids, output.routed_experts, self._versions(output), output.finish_reason)

    async def _die_with_engine(self) -> None:
        """Exit when the engine's processes die: vLLM would raise for some calls, and leave others waiting."""
        while not self._llm.errored:
            await asyncio.sleep(0.5)
        os._exit(1)

    async def sample(self, request: SampleRequest) -> Group:
        """`group_size` rewarded samples of a prompt. Samples that the reward leaves out are missing from their group.

        While all rewards are equal, those of its next spare instead; the last spare is always kept.
        """
        group = await self._samples(request)
        for number, spare in enumerate(request.spares, 1):
            if len({sample.reward for sample in group.samples}) > 1:
                break
            group = replace(await self._samples(spare), refills=number)
        return group

    async def canary(self, texts: list[tuple[int, ...]]) -> list[EngineLogprobs]:
        """Log-probability of every token of each text after its first, at temperature 1, and the version of the weights.

        Scoring a prompt takes one step of the engine; sampling would take one per token, among all that it samples.
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
        """`count` answers that continue each opening, within the same length limit as any other answer. No reward."""
        return list(await asyncio.gather(*(self._answers(opening, count) for opening in openings)))

    async def grade(self, answers: list[tuple[Prompt, str]]) -> list[Scored | Fault | None]:
        """The reward of each text."""
        calls = (asyncio.to_thread(self._rewards.score, [_question(prompt, text)]) for prompt, text in answers)
        return [one for (one,) in await asyncio.gather(*calls)]

    async def sleep(self) -> None:
        """Move the weights to host memory and drop the KV cache; a CPU engine has no GPU memory to free."""
        await self._llm.sleep(level=1, mode="wait")  # level 2 drops the weights: then a sync that fails leaves nothing behind

    async def wake(self) -> None:
        """Load the weights back, and make a new KV cache."""
        await self._llm.wake_up()

    async def busy_s(self) -> float:
        """Seconds since the start with at least one request at the engine; waiting for rewards and environments is none."""
        return self._busy_s + (time.monotonic() - self._busy_since if self._computing else 0.0)

    async def progress(self) -> tuple[int, int]:
        """How many responses the engine is to compute now, and how many steps its model has made.

        The engine's own loop answers, between two steps.
        """
        steps = await self._llm.collective_rpc("steps_made")
        return self._computing, int(steps[0])

    async def _samples(self, request: SampleRequest) -> Group:
        sampling, limit = request.sampling or self._sampling_spec(self._group_size), self._config.max_new_tokens
        if self._episodes:
            return await self._episodes.group(request, sampling)
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
        outputs = await asyncio.gather(*(self._generate(start, seed, self._sampling_spec(count), limit) for seed in seeds))
        wholes = [opening.begun + tuple(output.token_ids) for output in outputs]
        return [
            Answer(whole, self._tokenizer.decode(whole, skip_special_tokens=True), output.finish_reason)
            for whole, output in zip(wholes, outputs, strict=True)
        ]

    def _sample(self, prompt: Prompt, output: Any, text: str, score: Scored) -> Sample:
        return Sample(
            prompt_id=prompt.id,
            token_ids=np.array(output.token_ids, np.int32),
            action_mask=np.ones(len(output.token_ids), bool),
            logprobs=output.routed_experts,  # where `scheduler` puts them
            versions=self._versions(output),
            text=text,
            finish=output.finish_reason,
            reward=score.reward,
            parts=score.parts,
        )

    def _versions(self, output: Any) -> np.ndarray:
        """The version of each token of a response."""
        spans = output.weight_versions
        return np.repeat([self._version(s) for s in spans], [s.end - s.start for s in spans]).astype(np.int32)

    def _version(self, span: Any) -> int:
        initial = self._engine_config.initial_version
        return initial if span.version == "default" and initial is not None else int(span.version)

    def _sampling_spec(self, count: int) -> SamplingSpec:
        return SamplingSpec(count, self._config.temperature, self._config.top_p)

    async def _generate(self, token_ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Any:
        """One response, when a place is free; sampled anew if new weights aborted it."""
        async with self._places:
            while True:
                output = await self._respond(token_ids, seed, sampling, limit)
                if output.finish_reason != "abort":
                    return output

    async def _respond(self, token_ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=limit,
            seed=seed,
            stop_token_ids=self._stops,
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
        self._computing += 1
        if self._computing == 1:
            self._busy_since = time.monotonic()
        try:
            return [output async for output in self._llm.generate(prompt, params, str(self._requests))][-1]
        except EngineDeadError:
            os._exit(1)  # as `_die_with_engine` is about to
        finally:
            self._computing -= 1
            if not self._computing:
                self._busy_s += time.monotonic() - self._busy_since

    async def close(self) -> None:
        self._watch.cancel()
        self._rewards.close()
        if self._episodes:
            self._episodes.hosts.close()
        # A CPU engine in one process has nothing to give back, and would look for garbage among a million objects first.
        alone = self._engine_config.device == "cpu" and self._config.tensor_parallel == 1
        self._llm.shutdown(timeout=0 if alone else None)


def spawner(
    cluster: Cluster,
    config: ClusterConfig,
    engine: EngineConfig,
    rollout: RolloutConfig,
    reward: RewardConfig,
    group_size: int,
    episodes: EpisodeSetup | None = None,
) -> Callable[[str, int], Workers]:
    """A function that makes the actors of engines, which are not started yet."""
    env = environment(config)
    if not config.gpus_per_engine:
        env |= fork_server.variables(first="rlopt.rollout.cpu_fork:fork_here")

    def spawn(name: str, count: int) -> Workers:
        return cluster.engines(name, RolloutWorker, env, *[[engine, rollout, reward, group_size, episodes]] * count)

    return spawn


def _question(prompt: Prompt, text: str) -> Question:
    return Question(prompt.text, text, prompt.answer, prompt.columns)
