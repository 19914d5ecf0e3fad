"""An episode, turn by turn: what the learner gets is what was sampled, and observations stand between without being learned."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from test_environments import env

from rlopt.config.environments import EnvConfig
from rlopt.core.errors import Fault, RloptError
from rlopt.core.requests import SampleRequest, SamplingSpec, sample_seed
from rlopt.core.samples import Group, Prompt, Turn
from rlopt.data.collate import tabulate
from rlopt.data.dialogue import Dialogue
from rlopt.data.rollout_log import group_from_json, group_to_json
from rlopt.data.wording import Wording
from rlopt.environments.host import Broken, Lost
from rlopt.environments.wire import Call, Messages, Observed
from rlopt.models.tiny import TASKS, tokenizer
from rlopt.rewards.pool import Question, Scored
from rlopt.rollout.episode_setup import EpisodeSetup
from rlopt.rollout.episodes import Episodes, Sizes
from rlopt.rollout.transcript import Spoken
from rlopt.tracking.metrics import batch_metrics

TEXT = tokenizer(TASKS["tiny_calculator"])
END = TEXT.eos_token_id
PROMPT = Prompt("p", tuple(TEXT.encode("7*3=")), "7*3=", "21", "arithmetic", {"extra": 1})
Step = Callable[[str, int], Any]


@dataclass
class Script:
    """An engine: says the next text of a script, with the seed and the limit that it was asked with."""

    says: list[str]
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    version: int = 4

    async def __call__(self, ids: tuple[int, ...], seed: int, sampling: SamplingSpec, limit: int) -> Spoken:
        said = TEXT.encode(self.says[len(self.asked)])[:limit]
        self.asked.append((TEXT.decode(ids), seed, limit))
        self.version += 1
        full = len(said) == limit and said[-1] != END
        return Spoken(
            np.array(said, np.int32),
            np.full(len(said), -0.25 * len(self.asked), np.float32),
            np.full(len(said), self.version, np.int32),
            "length" if full else "stop",
        )


@dataclass
class FakeSession:
    """An environment that answers as `step` says; `step` may raise."""

    step_: Step
    opening: str | Messages | None
    reward: float | None
    log: list[str]
    seconds: float = 0.5
    turns: int = 0

    async def reset(self, row: dict[str, Any], seed: int) -> str | Messages | None:
        self.log.append(f"reset {row['prompt']} {row['answer']} {row['extra']} {seed}")
        return self.opening

    async def step(self, text: str, calls: list[Call]) -> Observed:
        self.turns += 1
        said: Observed = self.step_(text, self.turns)
        return said

    async def score(self) -> tuple[float | None, dict[str, float]]:
        return self.reward, {"speed": 1.0} if self.reward is not None else {}

    async def close(self) -> None:
        self.log.append("closed")


@dataclass
class FakeHosts:
    step: Step
    openings: list[str | Messages | None] = field(default_factory=lambda: [None])
    reward: float | None = None
    log: list[str] = field(default_factory=list)
    opened: list[bool] = field(default_factory=list)

    async def open(self, alone: bool = False) -> FakeSession:
        opening = self.openings[len(self.opened) % len(self.openings)]
        self.opened.append(alone)
        return FakeSession(self.step, opening, self.reward, self.log)


def calculating(text: str, turn: int) -> Observed:
    if text.endswith("]"):
        return Observed("21\n", False)
    return Observed(None, True, 1.0, {"neat": 2.0})


def group_of(
    says: list[str],
    hosts: FakeHosts,
    count: int = 1,
    limit: int = 60,
    score: Callable[[list[Question]], list[Scored | Fault | None]] = lambda questions: [],
    **changed: Any,
) -> tuple[Group, Script]:
    config: EnvConfig = env(fn="user_environments:Counting", stop=["]"], **changed)
    script = Script(says)
    episodes = Episodes(
        setup=EpisodeSetup(config, False, [], None, None, {}, [], ()),
        hosts=hosts,  # type: ignore[arg-type]
        wording=Wording(TEXT, None, chat=False, system=None),
        dialogue=Dialogue(TEXT, False, {END}),
        calls=None,
        decode=lambda ids, special: TEXT.decode(ids, skip_special_tokens=True),
        generate=script,
        score=score,
        sizes=Sizes(limit, 90, 8),
        run_seed=42,
        places=asyncio.Semaphore(1),
    )
    request = SampleRequest(PROMPT, "0")
    return asyncio.run(episodes.group(request, SamplingSpec(count, 1.0, 1.0))), script


def test_an_episode_is_one_sample_whose_observations_are_masked() -> None:
    hosts = FakeHosts(calculating)
    group, script = group_of(["[7*3]", "Answer: 21<eos>"], hosts)
    (sample,) = group.samples
    assert TEXT.decode(sample.token_ids) == "[7*3]21\nAnswer: 21<eos>"
    assert sample.action_mask.tolist() == [True] * 5 + [False] * 3 + [True] * 11
    assert sample.logprobs.tolist() == [-0.25] * 5 + [0.0] * 3 + [-0.5] * 11
    assert sample.versions.tolist() == [5] * 5 + [-1] * 3 + [6] * 11
    assert (sample.version, sample.newest_version, sample.sampled) == (5, 6, 16)
    assert (sample.reward, sample.parts, sample.finish) == (1.0, {"neat": 2.0}, "stop")
    assert sample.turns == (Turn(0, 5, 0.0), Turn(8, 19, 1.0))
    assert sample.text == "[7*3]\n--- environment ---\n21\n\n--- policy ---\nAnswer: 21"
    assert [asked[0] for asked in script.asked] == ["7*3=", "7*3=[7*3]21\n"]
    assert [asked[2] for asked in script.asked] == [60, 52]  # what is left of the limit, which counts observations
    assert hosts.log == [f"reset 7*3= 21 1 {sample_seed(42, 'p', '0/env', 0)}", "closed"]


def test_every_turn_has_a_seed_of_its_own_and_the_first_that_of_a_single_turn() -> None:
    _, script = group_of(["[7*3]", "[7*3]", "Answer: 21<eos>"], FakeHosts(calculating))
    seeds = [asked[1] for asked in script.asked]
    assert seeds[0] == sample_seed(42, "p", "0", 0)
    assert len(set(seeds)) == 3
    _, again = group_of(["[7*3]", "[7*3]", "Answer: 21<eos>"], FakeHosts(calculating))
    assert [asked[1] for asked in again.asked] == seeds


def test_an_episode_ends_with_the_limit_on_turns_and_never_with_an_observation() -> None:
    group, _ = group_of(["[7*3]", "[7*3]", "never"], FakeHosts(calculating), max_turns=2)
    (sample,) = group.samples
    assert (sample.finish, len(sample.turns), sample.action_mask[-1]) == ("length", 2, True)
    assert (sample.episode["ended_by_turns"], sample.episode["observation_tokens"], sample.episode["seconds"]) == (
        1.0,
        3.0,
        0.5,
    )


def test_an_episode_ends_where_a_turn_or_an_observation_finds_no_room() -> None:
    (cut,) = group_of(["[7*3]", "Answer: 21<eos>"], FakeHosts(calculating), limit=12)[0].samples
    assert (TEXT.decode(cut.token_ids), cut.finish) == ("[7*3]21\nAnsw", "length")
    (full,) = group_of(["[7*3]", "Answer: 21<eos>"], FakeHosts(calculating), limit=8)[0].samples
    assert (TEXT.decode(full.token_ids), full.finish) == ("[7*3]", "length")
    assert full.episode["ended_by_budget"] == 1.0


def test_a_turn_has_a_limit_of_its_own_and_what_it_said_by_then_is_acted_on() -> None:
    heard: list[str] = []

    def step(text: str, turn: int) -> Observed:
        heard.append(text)
        return Observed("1\n", turn == 2)

    group, script = group_of(["77777", "3<eos>"], FakeHosts(step), max_turn_tokens=3)
    assert (heard, [asked[2] for asked in script.asked]) == (["777", "3"], [3, 3])
    assert group.samples[0].finish == "stop"


def test_rewards_of_turns_and_of_the_end_are_added() -> None:
    hosts = FakeHosts(lambda text, turn: Observed("1\n", turn == 2, 0.5, {"p": 1.0}), reward=4.0)
    (sample,) = group_of(["7<eos>", "3<eos>"], hosts)[0].samples
    assert (sample.reward, sample.parts) == (5.0, {"p": 2.0, "speed": 1.0})
    assert [turn.reward for turn in sample.turns] == [0.5, 0.5]


def test_a_reward_function_gets_the_last_turn_and_the_conversation() -> None:
    asked: list[Question] = []

    def score(questions: list[Question]) -> list[Scored | Fault | None]:
        asked.extend(questions)
        return [Scored(3.0, {"own": 1.0}), None]

    for reward, total in (("function", 3.0), ("sum", 4.0)):
        asked.clear()
        says = ["[7*3]", "Answer: 21<eos>", "Answer: 3<eos>"]
        group, _ = group_of(says, FakeHosts(calculating), count=2, score=score, reward=reward)
        assert [sample.reward for sample in group.samples] == [total]  # the second is left out
        assert (asked[0].completion, asked[0].answer, asked[0].columns["extra"]) == ("Answer: 21", "21", 1)
        assert asked[0].columns["conversation"] == [
            {"role": "assistant", "content": "[7*3]"},
            {"role": "user", "content": "21\n"},
            {"role": "assistant", "content": "Answer: 21"},
        ]


def test_an_opening_takes_the_place_of_the_prompt() -> None:
    hosts = FakeHosts(calculating, openings=["8*2="])
    group, script = group_of(["Answer: 21<eos>"] * 2, hosts, count=2)
    assert (group.prompt.text, TEXT.decode(group.prompt.token_ids), script.asked[0][0]) == ("8*2=", "8*2=", "8*2=")
    with pytest.raises(RloptError, match=r"reset opened with 40 tokens, and prompts have 30; set data.max_prompt_tokens=40"):
        group_of(["7<eos>"], FakeHosts(calculating, openings=["7" * 40]))


def test_episodes_of_a_group_that_open_differently_are_named() -> None:
    hosts = FakeHosts(calculating, openings=["1+1=", "2+2="])
    with pytest.raises(RloptError, match="reset opened the episodes of one group differently; take all that is random"):
        group_of(["Answer: 21<eos>"] * 2, hosts, count=2)
    group, _ = group_of(["Answer: 21<eos>"] * 2, FakeHosts(calculating, openings=["1+1=", "2+2="]), count=2, on_error="skip")
    assert (len(group.samples), [fault.kind for fault in group.faults]) == (1, ["env_error"])


def failing(error: Exception) -> Step:
    def step(text: str, turn: int) -> Observed:
        raise error

    return step


def test_an_environment_that_fails_ends_the_run_or_is_counted() -> None:
    error = Broken("error", "env.fn=m:C step raised KeyError: 'x'")
    with pytest.raises(RloptError, match=r"env.fn=m:C step raised KeyError: 'x' on prompt p; mend it, or env.on_error=skip"):
        group_of(["7<eos>"], FakeHosts(failing(error)))
    group, _ = group_of(["7<eos>"], FakeHosts(failing(error)), on_error="skip")
    assert (group.samples, [fault.kind for fault in group.faults]) == ((), ["env_error"])
    group, _ = group_of(["7<eos>"], FakeHosts(failing(Broken("timeout", "took over"))))  # never ends the run
    assert [fault.kind for fault in group.faults] == ["env_timeout"]


def test_an_episode_whose_process_died_is_begun_again_once_in_one_of_its_own() -> None:
    deaths = iter([True, False])

    def step(text: str, turn: int) -> Observed:
        if next(deaths, False):
            raise Lost
        return Observed(None, True, 1.0)

    hosts = FakeHosts(step)
    group, script = group_of(["7<eos>", "7<eos>"], hosts)
    assert (hosts.opened, [sample.reward for sample in group.samples]) == ([False, True], [1.0])
    assert script.asked[0] == script.asked[1]  # with the same seeds
    hosts = FakeHosts(failing(Lost()))
    group, _ = group_of(["7<eos>", "7<eos>"], hosts)
    assert (hosts.opened, [fault.why for fault in group.faults]) == (
        [False, True],
        ["env.fn=user_environments:Counting died, twice, on prompt p"],
    )
    assert hosts.log.count("closed") == 2


def test_episodes_are_written_down_and_read_back_and_measured() -> None:
    group, _ = group_of(["[7*3]", "Answer: 21<eos>", "Answer: 3<eos>"], FakeHosts(calculating), count=2)
    kept = group_from_json(group_to_json(group))
    for mine, theirs in zip(group.samples, kept.samples, strict=True):
        assert (mine.turns, mine.episode, mine.versions.tolist()) == (theirs.turns, theirs.episode, theirs.versions.tolist())
    metrics = batch_metrics([group], 8, 2)
    assert (metrics["env/turns"], metrics["env/observation_tokens"], metrics["env/seconds"]) == (1.5, 1.5, 0.5)
    assert (metrics["response_length/mean"], metrics["offpolicy/lag_max"]) == ((16 + 10) / 2, 2)
    assert (metrics["env/turns_limit_frac"], metrics["env/error_frac"], "env/tool_error_frac" in metrics) == (0.0, 0.0, False)
    lost = Group(PROMPT, group.samples, faults=(Fault("env_timeout", "slow"), Fault("timeout", "slow")))
    metrics = batch_metrics([lost], 8, 4)
    assert (metrics["env/timeout_frac"], metrics["reward/timeout_frac"], metrics["env/error_frac"]) == (0.25, 0.25, 0.0)


def test_the_rewards_of_turns_reach_advantages_at_the_last_token_of_each_turn() -> None:
    hosts = FakeHosts(lambda text, turn: Observed("1\n", turn == 2, 0.5), reward=4.0)
    group, _ = group_of(["7<eos>", "3<eos>"], hosts)
    table = tabulate([group], 8)
    # four tokens of prompt, a turn of two, an observation of two, a turn of two; the score of 4 is not of a turn
    assert table.turn_rewards().tolist() == [[0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0.5]]
    assert table.take([0]).turn_rewards().tolist() == table.turn_rewards().tolist()
    assert table.padded().mask.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 1, 1]]
    plain = Group(PROMPT, tuple(replace(sample, turns=()) for sample in group.samples))
    assert tabulate([plain], 8).turn_rewards().tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 0, 5]]
