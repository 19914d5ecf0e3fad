"""An episode: turns of the policy, and between them observations of its environment, as one response.

    prompt | turn | observation | turn | observation | turn

The token ids of a turn are those that the engine returned; an observation is appended as `data.dialogue` writes it, with
`action_mask` 0. An episode ends with its environment, with `env.max_turns`, or with `rollout.max_new_tokens`, which counts
observations too; it never ends with an observation.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlopt.core.errors import Fault, RloptError
from rlopt.core.requests import SampleRequest, SamplingSpec, sample_seed
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.data.dialogue import Dialogue, end_tokens
from rlopt.data.unusable import UnusableRow
from rlopt.data.wording import Wording
from rlopt.environments.host import Broken, Hosts, Lost, Session
from rlopt.environments.wire import Call, Messages
from rlopt.rewards.pool import Question, Scored
from rlopt.rollout.episode_setup import EpisodeSetup, of_episodes
from rlopt.rollout.tool_calls import calls_of
from rlopt.rollout.transcript import Ended, Played, Spoken


@dataclass(frozen=True)
class Sizes:
    """Tokens of a response and of a whole sequence at most, and sequences that the engine samples at a time."""

    response: int
    sequence: int
    places: int


Generate = Callable[[tuple[int, ...], int, SamplingSpec, int], Awaitable[Spoken]]
"""A turn that continues token ids: seed, how it is sampled, tokens at most."""


@dataclass(frozen=True)
class Episodes:
    """Plays the episodes of groups.

    Attributes:
        hosts: where the environments live.
        wording, dialogue: how an opening and an observation become token ids.
        calls: the calls of tools in a turn's text with special tokens; None: there are no tools.
        decode: a turn's text, `special` with its special tokens.
        score: `reward.fn` of each question.
        run_seed: of the run.
        places: how many episodes are under way at most.
    """

    setup: EpisodeSetup
    hosts: Hosts
    wording: Wording
    dialogue: Dialogue
    calls: Callable[[str], list[Call]] | None
    decode: Callable[[np.ndarray, bool], str]
    generate: Generate
    score: Callable[[list[Question]], list[Scored | Fault | None]]
    sizes: Sizes
    run_seed: int
    places: asyncio.Semaphore

    async def group(self, request: SampleRequest, sampling: SamplingSpec) -> Group:
        """The episodes of a prompt, side by side. Those that failed are left out, with their faults."""
        played = await asyncio.gather(*(self._episode(request, sampling, number) for number in range(sampling.count)))
        prompt = next((one.prompt for one in played if isinstance(one, Sample | Ended)), request.prompt)
        faults = [one for one in played if isinstance(one, Fault)]
        ended = list[Ended]()
        for one in played:
            if isinstance(one, Ended):
                if one.prompt.token_ids == prompt.token_ids:
                    ended.append(one)
                else:
                    why = "its reset opened the episodes of one group differently; take all that is random from its seed"
                    faults.append(self._failed(f"{self._where}: {why}"))
        samples = await self._scored(ended)
        faults += [one for one in samples if isinstance(one, Fault)]
        return Group(prompt, tuple(one for one in samples if isinstance(one, Sample)), faults=tuple(faults))

    @property
    def _where(self) -> str:
        env = self.setup.env
        return f"env.fn={env.fn}" if env.fn else f"env.tools={','.join(env.tools)}"

    def _failed(self, why: str) -> Fault:
        """The fault of an environment that failed; it ends the run unless `env.on_error` says otherwise."""
        if self.setup.env.on_error == "stop":
            raise RloptError(f"{why}; mend it, or env.on_error=skip")
        return Fault("env_error", why)

    async def _episode(self, request: SampleRequest, sampling: SamplingSpec, number: int) -> "Ended | Fault":
        """One episode; begun again once, in a process of its own, where its process died."""
        async with self.places:
            for alone in (False, True):
                session = await self.hosts.open(alone)
                try:
                    return await self._play(session, request, sampling, number)
                except Lost:
                    if alone:
                        return Fault("env_error", f"{self._where} died, twice, on prompt {request.prompt.id}")
                except Broken as broken:
                    why = f"{broken} on prompt {request.prompt.id}"
                    return Fault("env_timeout", why) if broken.kind == "timeout" else self._failed(why)
                except (UnusableRow, RloptError) as error:
                    return self._failed(f"{self._where}: {error}")
                finally:
                    await session.close()
        raise AssertionError("the second time returns")

    async def _play(self, session: Session, request: SampleRequest, sampling: SamplingSpec, number: int) -> "Ended":
        env, prompt = self.setup.env, request.prompt
        group_seed = sample_seed(self.run_seed, prompt.id, f"{request.draw}/env", 0)
        row = {**prompt.columns, "prompt": prompt.columns.get("messages", prompt.text), "answer": prompt.answer}
        played, finish = Played(self._opened(prompt, await session.reset(row, group_seed))), "turns"
        for place in range(env.max_turns):
            draw = request.draw if not place else f"{request.draw}/turn {place}"
            seed = sample_seed(self.run_seed, prompt.id, draw, number)
            left = self.sizes.response - played.length
            said = await self.generate(played.token_ids, seed, sampling, min(left, env.max_turn_tokens or left))
            text = self.decode(said.token_ids, False)
            played.hear(said, text)
            if said.finish == "length" and played.length >= self.sizes.response:
                finish = "budget"
                break
            seen = await session.step(text, self.calls(self.decode(said.token_ids, True)) if self.calls else [])
            played.answer(seen)
            if seen.done or seen.said is None:
                finish = "done"
                break
            if place + 1 < env.max_turns:
                ids = self.dialogue.observation(seen.said, int(said.token_ids[-1]))
                if played.length + len(ids) >= self.sizes.response:
                    finish = "budget"
                    break
                played.observe(ids, seen.said)
        score, parts = await session.score() if env.scores != "function" else (None, {})
        played.parts.update(parts)
        played.numbers["seconds"] = session.seconds
        return Ended(played, finish, sum(turn.reward for turn in played.turns) + (score or 0.0))

    def _opened(self, prompt: Prompt, opening: str | Messages | None) -> Prompt:
        """The prompt with what its environment opened the episode with.

        Raises:
            RloptError: it is too long.
        """
        if opening is None:
            return prompt
        ids = self.wording.ids(opening)
        room = self.sizes.sequence - self.sizes.response
        if len(ids) > room:
            raise RloptError(
                f"reset opened with {len(ids)} tokens, and prompts have {room}; set data.max_prompt_tokens={len(ids)}"
            )
        text = opening if isinstance(opening, str) else "\n\n".join(message["content"] for message in opening)
        return replace(prompt, token_ids=ids, text=text)

    async def _scored(self, ended: "list[Ended]") -> list[Sample | Fault]:
        """The samples with their rewards. Those that the reward leaves out are missing."""
        scores = self.setup.env.scores
        if scores == "environment":
            return [one.played.sample(one.reward, one.played.parts, one.finish) for one in ended]
        found = await asyncio.to_thread(self.score, [one.question for one in ended])
        samples = list[Sample | Fault]()
        for one, score in zip(ended, found, strict=True):
            if isinstance(score, Fault):
                samples.append(score)
            elif score is not None:
                own = one.reward if scores == "sum" else 0.0
                parts = {**one.played.parts, **score.parts}
                samples.append(one.played.sample(score.reward + own, parts, one.finish))
        return samples


def player(
    setup: EpisodeSetup,
    hosts: Hosts,
    tokenizer: Any,
    sizes: Sizes,
    run_seed: int,
    generate: Generate,
    score: Callable[[list[Question]], list[Scored | Fault | None]],
) -> Episodes:
    """What plays the episodes of an engine."""
    ends = end_tokens(tokenizer, setup.generation)

    def decode(ids: np.ndarray, special: bool) -> str:
        last = len(ids) - (special and int(ids[-1]) in ends)
        return str(tokenizer.decode(ids[:last], skip_special_tokens=not special))

    return Episodes(
        setup=setup,
        hosts=hosts,
        wording=of_episodes(Wording(tokenizer, template=None, chat=setup.chat, system=None), setup),
        dialogue=Dialogue(tokenizer, setup.chat, ends),
        calls=calls_of(setup.parser, tokenizer, setup.tools) if setup.parser else None,
        decode=decode,
        generate=generate,
        score=score,
        sizes=sizes,
        run_seed=run_seed,
        places=asyncio.Semaphore(setup.env.episodes or sizes.places),
    )
