"""Processes in which episodes live, many in each: a slow step waits alone, a hanging one costs its episode.

A step that overruns cannot be ended by itself where it runs in a thread. Its process then takes no more episodes, another takes
its place, and it is killed when its other episodes are over. Episodes whose process died begin again, once, in a process of
their own: whoever killed it is then known.
"""

import asyncio
import inspect
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rlopt.config.environments import EnvConfig
from rlopt.core.killable import START_DEADLINE_S, Killable, StartMethod, Tail, said_of
from rlopt.environments.live import Live
from rlopt.environments.load import Maker, maker
from rlopt.environments.wire import Call, Messages, Observed, shortened

THREADS = 1024
"""Steps that are not asynchronous and wait at one time, in one process."""

TOOLS_MORE_S = 5.0
"""Seconds that a step with tools may take beyond what each call may."""


class Lost(Exception):
    """The process of an episode died, by whosever fault."""


class Broken(Exception):
    """An environment took too long (`kind` timeout) or failed (error)."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Hosts:
    """`env.workers` processes. Used from one event loop."""

    def __init__(self, config: EnvConfig, start_method: StartMethod) -> None:
        maker(config)  # what cannot be imported is refused here rather than in a child
        self._config, self._start_method = config, start_method
        self._hosts = [self._start() for _ in range(config.workers)]
        self._numbers, self._replacing = itertools.count(), asyncio.Lock()

    async def open(self, alone: bool = False) -> "Session":
        """A new episode, in the process that has the fewest; `alone`: in a process of its own."""
        async with self._replacing:
            for place, host in enumerate(self._hosts):
                if host.left:
                    self._hosts[place] = await asyncio.to_thread(self._start)
                    await host.retire()
        host = await asyncio.to_thread(self._start) if alone else min(self._hosts, key=lambda one: one.episodes)
        host.episodes += 1
        host.left = alone or host.left
        return Session(host, next(self._numbers), self._config)

    def _start(self) -> "Host":
        return Host(self._config, self._start_method)

    def close(self) -> None:
        """End all of them at once."""
        for host in self._hosts:
            host.kill()


class Host:
    """One process, as its parent sees it. `left`: it takes no more episodes."""

    def __init__(self, config: EnvConfig, start_method: StartMethod) -> None:
        self._process = Killable(_serve, _Config(config), start_method)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._reader: threading.Thread | None = None
        self._ready = False
        self.episodes, self.left, self.dead = 0, False, False
        self._ending, self._ended = threading.Lock(), False

    async def ask(self, timeout_s: float, **message: Any) -> Any:
        """The process's answer.

        Raises:
            TimeoutError: there is none.
            Lost: the process died, or was stopped from outside.
            Broken: the environment raised.
        """
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, args=[asyncio.get_running_loop()], daemon=True)
            self._reader.start()
        if self.dead:
            raise Lost
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._process.pipe.send({"number": number, **message})
            said = await asyncio.wait_for(answer, timeout_s if self._ready else timeout_s + START_DEADLINE_S)
        except TimeoutError:
            if self._process.stopped:
                await asyncio.to_thread(self.kill)
                raise Lost from None
            raise
        except OSError:  # of which TimeoutError is a kind
            raise Lost from None
        finally:
            self._answers.pop(number, None)
        self._ready = True
        if "failed" in said:
            raise Broken("error", said["failed"])
        return said["answer"]

    async def retire(self) -> None:
        """Kill it if its last episode is over."""
        if self.left and not self.episodes:
            await asyncio.to_thread(self.kill)

    def kill(self) -> None:
        self.dead = self.left = True
        with self._ending:
            if not self._ended:
                self._process.end()
                if self._reader:
                    self._reader.join(1.0)  # it sees the pipe's other end close
                self._process.kill()
            self._ended = True

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed
            with suppress(EOFError, OSError, ValueError):
                while True:
                    loop.call_soon_threadsafe(self._take, json.loads(self._process.pipe.recv_bytes()))  # never a pickle
            loop.call_soon_threadsafe(self._lost)

    def _take(self, said: Mapping[str, Any]) -> None:
        answer = self._answers.get(said["number"])
        if answer and not answer.done():
            answer.set_result(said)

    def _lost(self) -> None:
        self.dead = self.left = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Lost())


class Session:
    """An episode's environment. `seconds`: how long it was waited for."""

    def __init__(self, host: Host, number: int, config: EnvConfig) -> None:
        self._host, self._number, self._config = host, number, config
        self._where = f"env.fn={config.fn}" if config.fn else f"env.tools={','.join(config.tools)}"
        self.seconds = 0.0

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | Messages | None:
        """The opening, None for the row's own prompt. Raises Lost and Broken, as all of these do."""
        said: str | Messages | None = await self._ask("reset", self._config.timeout_s, row=dict(row), seed=seed)
        return said

    async def step(self, text: str, calls: list[Call]) -> Observed:
        more = len(calls) * self._config.timeout_s + TOOLS_MORE_S if calls else 0.0
        said = await self._ask("step", self._config.timeout_s + more, text=text, calls=[vars(call) for call in calls])
        if said.pop("overran"):
            self._host.left = True
        return Observed(**said)

    async def score(self) -> tuple[float | None, dict[str, float]]:
        value, parts = await self._ask("score", self._config.timeout_s)
        return value, parts

    async def close(self) -> None:
        """Give it up; never raises."""
        if not self._host.dead:
            with suppress(Lost, Broken):
                await self._ask("close", self._config.timeout_s)
        self._host.episodes -= 1
        await self._host.retire()

    async def _ask(self, op: str, timeout_s: float, **arguments: Any) -> Any:
        began = asyncio.get_running_loop().time()
        try:
            return await self._host.ask(timeout_s, op=op, episode=self._number, **arguments)
        except TimeoutError:
            self._host.left = True  # what hangs there can only be killed
            raise Broken("timeout", f"{self._where} {op} took over env.timeout_s={self._config.timeout_s}") from None
        except Broken as broken:
            raise Broken("error", f"{self._where} {op} {broken}") from None
        finally:
            self.seconds += asyncio.get_running_loop().time() - began


class _Config:
    """Makes the maker, in a child."""

    def __init__(self, config: EnvConfig) -> None:
        self._config = config

    def __call__(self) -> tuple[Maker, EnvConfig]:
        return maker(self._config), self._config


def _serve(make: Callable[[], tuple[Maker, EnvConfig]], pipe: Connection) -> None:
    try:
        made, config = make()
        made.prepare()
    except Exception as error:  # importing runs the user's module, which could be imported in the parent
        why = said_of(error, "")
        with suppress(EOFError, OSError):
            while True:
                pipe.send_bytes(json.dumps({"number": pipe.recv()["number"], "failed": why}).encode())
    else:
        asyncio.run(_Served(made, config.max_observation_chars, pipe).serve())


class _Served:
    """The process itself: a loop that answers each message when its answer is there."""

    def __init__(self, make: Maker, most: int, pipe: Connection) -> None:
        self._make, self._most, self._pipe = make, most, pipe
        self._episodes: dict[int, Live] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="environment")
        self._mine, self._sending, self._overran = os.getpid(), threading.Lock(), set[int]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._printed = sys.stdout = sys.stderr = Tail()

    async def serve(self) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=self._read, args=[loop, over], daemon=True).start()
        await over.wait()
        os._exit(0)  # threads of the user's may hang

    def _read(self, loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
        try:
            while True:
                loop.call_soon_threadsafe(self._begin, self._pipe.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(over.set)

    def _begin(self, message: dict[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(**message))
        self._tasks.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, op: str, episode: int, **arguments: Any) -> None:
        try:
            said: dict[str, Any] = {"answer": await getattr(self, f"_{op}")(episode, **arguments)}
        except BaseException as error:  # whatever the user's code raises, SystemExit too
            said = {"failed": said_of(error, self._printed.text)}
        with self._sending:
            self._pipe.send_bytes(json.dumps({"number": number, **said}).encode())

    async def _reset(self, episode: int, row: Mapping[str, Any], seed: int) -> str | Messages | None:
        # Making it may take long, so it is made in a thread as well.
        overran = partial(self._overran.add, episode)
        live = self._episodes[episode] = await self._run(self._make, self._run, overran)
        said: str | Messages | None = await live.reset(row, seed)
        return said

    async def _step(self, episode: int, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        self._overran.discard(episode)
        seen = await self._episodes[episode].step(text, [Call(**call) for call in calls])
        said, cuts = shortened(seen.said, self._most)
        return {**asdict(seen), "said": said, "cut": cuts, "overran": episode in self._overran}

    async def _score(self, episode: int) -> tuple[float | None, dict[str, float]]:
        return await self._episodes[episode].score()

    async def _close(self, episode: int) -> None:
        live = self._episodes.pop(episode, None)
        if live:
            await live.close()

    async def _run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of the user's: on the loop if it is asynchronous, else in a thread."""
        if inspect.iscoroutinefunction(function):
            return await function(*arguments, **named)
        call = partial(self._here, function, *arguments, **named)
        said = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        return await said if asyncio.iscoroutine(said) else said

    def _here(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        finally:
            if os.getpid() != self._mine:  # the function forked: one of both answers
                os._exit(0)
