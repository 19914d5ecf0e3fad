"""Environments and tools in processes of their own: every kind that people write, and everything that they do wrong."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from rlopt.config.compose import default_section, read
from rlopt.config.environments import EnvConfig
from rlopt.core.errors import RloptError
from rlopt.data import calculator, guessing
from rlopt.environments.embedded import Calculator, Guessing
from rlopt.environments.host import Broken, Hosts, Lost
from rlopt.environments.load import maker, schemas
from rlopt.environments.wire import Call, Observed, cut, observed, scored, shortened

ROW = {"prompt": "1+1=", "answer": "9"}


def env(**changed: Any) -> EnvConfig:
    """As `conf/config.yaml` has it, but for what is `changed`."""
    kept = default_section("env")
    return read(EnvConfig, {**kept, "timeout_s": 20.0, **changed}, "env.")


def user(name: str) -> str:
    return f"user_environments:{name}"


def play(config: EnvConfig, act: Callable[[Hosts], Awaitable[Any]]) -> Any:
    """What `act` does with hosts that are closed at the end."""

    async def run() -> Any:
        hosts = Hosts(config, "spawn")
        try:
            return await act(hosts)
        finally:
            hosts.close()

    return asyncio.run(run())


def episode(config: EnvConfig, *turns: str | list[Call], row: dict[str, Any] = ROW) -> tuple[Any, list[Observed], Any]:
    """The opening, what was observed after each turn, and the score."""

    async def act(hosts: Hosts) -> Any:
        session = await hosts.open()
        opening = await session.reset(row, 5)
        seen = [await (session.step(one, []) if isinstance(one, str) else session.step("", one)) for one in turns]
        score = await session.score()
        await session.close()
        return opening, seen, score

    return play(config, act)


def test_an_environment_of_ours_opens_answers_and_ends() -> None:
    opening, seen, score = episode(env(fn=user("Counting"), options={"most": 2}), "a", "b")
    assert opening == "1+1= 5"
    assert [(one.said, one.done, one.reward) for one in seen] == [("heard 1: a", False, 0.5), ("heard 2: b", True, 0.5)]
    assert score == (None, {})


def test_methods_may_be_asynchronous_and_rewards_have_parts() -> None:
    opening, (seen,), score = episode(env(fn=user("Awaited")), "stop")
    assert opening == [{"role": "user", "content": "1+1="}]
    assert (seen.said, seen.done, seen.reward, seen.parts) == ("on", True, 1.0, {"manners": 0.25})
    assert score == (10.0, {"speed": 2.0})


def test_gymnasiums_interface_is_known() -> None:
    opening, (seen,), _ = episode(env(fn=user("Gym")), "stop")
    assert opening == "options 9"
    assert (seen.said, seen.done, seen.reward) == ("7", True, 1.0)


def test_the_methods_of_trls_factories_are_tools_and_its_reward_is_the_score() -> None:
    config = env(fn=user("Shop"))
    (tool,) = schemas(config)
    assert tool["function"]["name"] == "buy"
    assert sorted(tool["function"]["parameters"]["properties"]) == ["item", "price"]
    opening, seen, score = episode(config, [Call("buy", {"item": "tea", "price": 4})], [])
    assert opening is None
    assert seen[0].said == [{"role": "tool", "name": "buy", "content": "bought tea, 5 left"}]
    assert [(one.done, one.calls, one.errors) for one in seen] == [(False, 1, 0), (True, 0, 0)]
    assert score == (1.0, {})


def test_an_environment_of_verifiers_is_played_and_scored_by_its_rubric() -> None:
    opening, seen, score = episode(env(fn=user("load_verifier")), "5", "9")
    assert opening == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1="}]
    assert [(one.said, one.done) for one in seen] == [([{"role": "user", "content": "not 5"}], False), (None, True)]
    assert score == (1.0 + 0.5 * 2, {"right": 1.0, "turns": 2.0})


def test_tools_answer_calls_and_what_is_wrong_with_one() -> None:
    calls = [
        Call("add", {"a": 2, "b": 3}),
        Call("look_up", {"word": "tea"}),
        Call("add", {"a": 2}),
        Call("sub", {"a": 2}),
        Call("", error="not JSON"),
        Call("look_up", {"word": "nothing"}),
        Call("look_up", {"word": "long"}),
    ]
    config = env(tools=[user("add"), user("look_up")], timeout_s=2.0)
    _, (seen, last), _ = episode(config, calls, "the answer is 5")
    assert isinstance(seen.said, list)
    assert [one["content"] for one in seen.said] == [
        "5",
        '{"tea": "a word"}',
        "error: add: missing a required argument: 'b'",
        "error: there is no tool sub; there are add, look_up",
        "error: not JSON",
        "error: LookupError: no such word",
        "error: look_up took over 2 s",
    ]
    assert (seen.calls, seen.errors, seen.done) == (7, 5, False)
    assert (last.said, last.done) == (None, True)  # a turn without a call ends the episode


def bad(what: str, timeout_s: float = 20.0) -> Observed:
    """What is observed after one turn where the environment is bad in one way."""
    _, (seen,), _ = episode(env(fn=user("Bad"), timeout_s=timeout_s), "a", row={"prompt": what, "answer": ""})
    return seen


def test_a_module_that_cannot_be_imported_where_episodes_live_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import multiprocessing\n\nif multiprocessing.parent_process():\n    raise OSError('no display')\n")
    with file.open("a") as more:
        more.write("\n\nclass Mine:\n    def step(self, action):\n        return '', True, 1.0\n")
    with pytest.raises(
        Broken, match=r"reset raised RloptError: env.fn=.*mine.py:Mine: cannot be imported \(OSError: no display"
    ):
        episode(env(fn=f"{file}:Mine"), "a")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("refuse", r"env.fn=user_environments:Bad reset raised ValueError: no such row \(.*user_environments.py:\d+\)"),
        ("raise", r"step raised KeyError: 'gone' .*; before that it printed 'xxxx"),
        ("exit", "step raised SystemExit: 3"),
        ("type", r"step raised TypeError: step returned <object .*; want \(observation, done, reward\)"),
        ("done", "step raised TypeError: step returned done='perhaps'"),
        ("nan", "step raised TypeError: a reward is nan; want a finite number"),
    ],
)
def test_what_an_environment_does_wrong_is_named(what: str, why: str) -> None:
    with pytest.raises(Broken, match=why) as broken:
        bad(what)
    assert broken.value.kind == "error"
    assert len(str(broken.value)) < 700  # however much it printed


def test_a_step_that_hangs_is_given_up_and_its_process_is_replaced() -> None:
    async def act(hosts: Hosts) -> list[int]:
        (first,) = hosts._hosts
        hanging, other = await hosts.open(), await hosts.open()
        await hanging.reset({"prompt": "hang"}, 0)
        await other.reset({"prompt": "fine"}, 0)
        with pytest.raises(Broken, match="step took over env.timeout_s=1.0") as broken:
            await hanging.step("a", [])
        assert broken.value.kind == "timeout"
        again = await hosts.open()
        assert (await other.step("a", [])).said == "fine"  # its neighbour plays on in the old process
        assert hosts._hosts[0] is not first
        await again.reset({"prompt": "fine"}, 0)
        assert (await again.step("a", [])).said == "fine"
        old = first._process._process.pid
        for session in (hanging, other, again):
            await session.close()
        return [pid for pid in (old,) if pid and psutil.pid_exists(pid)]

    assert play(env(fn=user("Bad"), timeout_s=1.0), act) == []


def test_an_episode_whose_process_died_says_so_and_the_next_is_played() -> None:
    async def act(hosts: Hosts) -> str:
        dying, other = await hosts.open(), await hosts.open()
        await dying.reset({"prompt": "die"}, 0)
        await other.reset({"prompt": "fine"}, 0)
        with pytest.raises(Lost):
            await dying.step("a", [])
        with pytest.raises(Lost):
            await other.step("a", [])
        await dying.close()
        await other.close()
        alone = await hosts.open(alone=True)
        await alone.reset({"prompt": "fine"}, 0)
        said = (await alone.step("a", [])).said
        await alone.close()
        assert alone._host._ended  # a process of its own ends with its episode
        return str(said)

    assert play(env(fn=user("Bad")), act) == "fine"


def test_a_fork_of_an_environment_answers_once_and_a_long_observation_is_cut() -> None:
    assert bad("fork").said == "fine"
    seen = bad("shout")
    assert isinstance(seen.said, str)
    assert seen.said.startswith("aaa")
    assert seen.said.endswith("aend")
    assert (len(seen.said) < 4200, seen.cut) == (True, 1)


def test_slow_steps_wait_side_by_side() -> None:
    async def act(hosts: Hosts) -> float:
        sessions = [await hosts.open() for _ in range(16)]
        await asyncio.gather(*(one.reset({"answer": "0.5"}, 0) for one in sessions))
        began = time.monotonic()
        await asyncio.gather(*(one.step("a", []) for one in sessions))
        return time.monotonic() - began

    assert play(env(fn=user("Slow")), act) < 4.0  # one after another they take 8 s


@pytest.fixture
def served() -> Iterator[tuple[str, list[Any]]]:
    """The address of a server that speaks as OpenEnv's do, a session for each socket, and what it heard."""
    heard, ready, started = list[Any](), threading.Event(), list[Any]()

    async def session(request: web.Request) -> web.WebSocketResponse:
        socket, turns = web.WebSocketResponse(), 0
        await socket.prepare(request)
        async for message in socket:
            said = json.loads(message.data)
            heard.append(said)
            turns += said["type"] == "step"
            answer: dict[str, Any] = {"type": "observation"}
            answer["data"] = {"observation": {"board": f"turn {turns}"}, "reward": float(turns), "done": turns == 2}
            if said["data"].get("move") == "bad":
                answer = {"type": "error", "data": {"message": "no such move", "code": "VALIDATION_ERROR"}}
            await socket.send_json(answer)
        return socket

    async def serve() -> None:
        application, over = web.Application(), asyncio.Event()
        application.router.add_get("/ws", session)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        started.extend([asyncio.get_running_loop(), over, runner.addresses[0][1]])
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10.0)
    loop, over, port = started
    yield f"http://127.0.0.1:{port}", heard
    loop.call_soon_threadsafe(over.set)
    thread.join()


def test_an_environment_that_openenv_serves_is_played_over_one_socket(served: tuple[str, list[Any]]) -> None:
    address, heard = served
    config = env(fn=address, options={"action": "move", "observation": "board"})
    opening, seen, _ = episode(config, "left", "right")
    assert opening == "turn 0"
    assert [(one.said, one.done, one.reward) for one in seen] == [("turn 1", False, 1.0), ("turn 2", True, 2.0)]
    assert heard == [
        {"type": "reset", "data": {"seed": 5}},
        {"type": "step", "data": {"move": "left"}},
        {"type": "step", "data": {"move": "right"}},
    ]
    with pytest.raises(Broken, match=r"ws://127.0.0.1:\d+/ws answered step with no such move"):
        episode(config, "bad")
    with pytest.raises(Broken, match="reset raised ClientConnectorError"):
        episode(env(fn="http://127.0.0.1:9"), "a")


def test_what_cannot_be_loaded_or_described_is_refused_before_a_run() -> None:
    with pytest.raises(RloptError, match=r"env.fn=user_environments:Gone: cannot be imported .*; want module:Class"):
        maker(env(fn=user("Gone")))
    with pytest.raises(RloptError, match=r"env.options={'least': 1}: do not fit env.fn=user_environments:Counting \(got an"):
        maker(env(fn=user("Counting"), options={"least": 1}))
    with pytest.raises(RloptError, match="env.tools=user_environments:add: there is another tool called add"):
        maker(env(tools=[user("add"), user("add")]))
    with pytest.raises(RloptError, match=r"env.tools=undescribed: cannot be described to the model \(.*docstring"):
        schemas(env(tools=[user("undescribed")]))
    for key, value in (("options", {"a": 1}), ("stop", ["]"]), ("reward", "sum"), ("episodes", 4)):
        with pytest.raises(RloptError, match=rf"env.{key}=.*: there is no environment; set env.fn or env.tools, or drop it"):
            env(**{key: value})


def test_rewards_and_observations_are_read_in_all_their_forms() -> None:
    assert observed(("a", 0, None)) == Observed("a", False, None, {})
    assert observed(("a", 1.5, True, {"x": 1})) == Observed("a", True, 1.5, {})
    assert observed({"observation": None, "terminated": True, "reward": 1, "hits": 3}) == Observed(
        None, True, 1.0, {"hits": 3.0}
    )
    assert scored({"score": 2, "speed": 1, "note": "text"}) == (2.0, {"speed": 1.0})
    for wrong in ("3", {"speed": 1}, float("inf"), [1]):
        with pytest.raises(TypeError, match="a reward is"):
            scored(wrong)
    with pytest.raises(TypeError, match="step returned a dict without observation"):
        observed({"done": True})
    with pytest.raises(TypeError, match="a message whose content is not text"):
        observed(([{"role": "user", "content": 3}], True, 0.0))
    assert cut("abcdef", 6) == ("abcdef", False)
    assert cut("abcdefghij", 4) == ("ab ... 6 characters left out ... ij", True)
    assert shortened([{"role": "tool", "content": "abcdef"}], 2)[1] == 1


@pytest.fixture
def calculating() -> Iterator[Calculator]:
    made = Calculator()
    made.reset({"answer": "33"}, 0)
    return made


def test_the_calculator_answers_one_operation_and_scores_the_answer(calculating: Calculator) -> None:
    assert [calculating.step(action)[0] for action in ("[7*3]", "x[12+21]", "[7-3]", "7*3]", "[1*2*3]")] == [
        "21\n",
        "33\n",
        "?\n",
        "?\n",
        "?\n",
    ]
    assert calculating.step("Answer: 33") == (None, True, 1.0)
    assert calculating.step("Answer: 34") == (None, True, 0.0)


def test_the_game_says_lower_or_higher_until_the_guess_is_right() -> None:
    game = Guessing()
    game.reset({"answer": "23"}, 0)
    assert [game.step(action) for action in ("30\n", "7\n", "x\n", "23\n")] == [
        ("<", False, 0.0),
        (">", False, 0.0),
        ("?", False, 0.0),
        (None, True, 1.0),
    ]


def test_the_embedded_corpora_are_episodes_that_their_environments_would_play() -> None:
    import random

    for _, pieces in zip(range(200), calculator.corpus(random.Random(1), 0.7, 0.5), strict=False):
        assert set("".join(text for text, _ in pieces)) <= set(calculator.CHARACTERS)
        for (call, _), (said, _) in zip(pieces[1::2], pieces[2::2], strict=False):
            assert said == f"{calculator.result(call)}\n"
    for _, pieces in zip(range(200), guessing.corpus(random.Random(1), 0.4, 0.3), strict=False):
        assert set("".join(text for text, _ in pieces)) <= set(guessing.CHARACTERS)
        assert pieces[-1][1]
        assert [learned for _, learned in pieces] == [bool(i % 2) for i in range(len(pieces))]
    games, held_out = guessing.games(3, 300), guessing.games(3, 50, held_out=True)
    assert len(set(games)) == 300
    assert not {game.text for game in games} & {game.text for game in held_out}
    assert all(game.low <= game.hidden <= game.high and 12 <= game.high - game.low + 1 <= 40 for game in games)


def test_episodes_that_begin_together_after_a_death_share_one_new_process() -> None:
    async def act(hosts: Hosts) -> int:
        hosts._hosts[0].left = True  # as a step that hung leaves it
        sessions = await asyncio.gather(*(hosts.open() for _ in range(8)))
        processes = {id(session._host) for session in sessions}
        await asyncio.gather(*(session.close() for session in sessions))
        return len(processes)

    assert play(env(fn=user("Counting")), act) == 1
