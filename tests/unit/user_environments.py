"""Environments and tools as users write them: good ones of every kind, and bad ones."""

import asyncio
import os
import random
import signal
import time
from typing import Any


class Counting:
    """Says how often it was spoken to; over when it hears stop, or after `most`."""

    def __init__(self, most: int = 3) -> None:
        self.most, self.heard = most, 0

    def reset(self, row: dict[str, Any], seed: int) -> str:
        return f"{row['prompt']} {seed}"

    def step(self, action: str) -> tuple[str, bool, float]:
        self.heard += 1
        return f"heard {self.heard}: {action}", action == "stop" or self.heard >= self.most, 0.5


class Awaited:
    """The same kind, asynchronous, scored at its end, with parts."""

    async def reset(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}]

    async def step(self, action: str) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"observation": "on", "done": action == "stop", "reward": {"score": 1.0, "manners": 0.25}}

    async def score(self) -> dict[str, float]:
        return {"score": 10.0, "speed": 2.0}


class Gym:
    """Gymnasium's: keywords `seed` and `options`, five values."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        assert seed is not None
        assert options
        return f"options {options['answer']}", {}

    def step(self, action: str) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 7, 1.0, False, action == "stop", {}


class Shop:
    """TRL's environment factory: its methods are tools."""

    def __init__(self) -> None:
        self.reward, self.bought = 0.0, list[str]()

    def reset(self, **row: Any) -> None:
        self.budget = int(row["answer"])

    def buy(self, item: str, price: int) -> str:
        """
        Buy something.

        Args:
            item: What to buy.
            price: What it costs.
        """
        self.budget -= price
        self.bought.append(item)
        self.reward = float(self.budget >= 0)
        return f"bought {item}, {self.budget} left"


class Verifier:
    """An environment of `verifiers` with several turns, and a rubric."""

    system_prompt = "be brief"

    class inner:
        reward_weights = (1.0, 0.5)

        @staticmethod
        def right(completion: list[dict[str, str]], answer: str) -> float:
            return float(completion[-1]["content"] == answer)

        @staticmethod
        def turns(state: dict[str, Any]) -> float:
            return float(state["turn"])

        reward_funcs = (right, turns)

    class rubric:
        funcs = ()

    rubric.rubrics = (inner,)

    async def setup_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "said": []}

    async def is_completed(self, state: dict[str, Any], **options: Any) -> bool:
        return len(state["trajectory"]) >= 2

    async def env_response(self, messages: list[dict[str, str]], state: dict[str, Any]) -> list[dict[str, str]]:
        state["said"].append(messages[-1]["content"])
        return [{"role": "user", "content": f"not {messages[-1]['content']}"}]


def load_verifier() -> Verifier:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # as theirs do, which the main thread alone may
    return Verifier()


class Bad:
    """Does what its row's prompt says."""

    def __init__(self) -> None:
        self.asked = ""

    def reset(self, row: dict[str, Any]) -> None:
        self.asked = row["prompt"]
        if self.asked == "refuse":
            raise ValueError("no such row")

    def step(self, action: str) -> Any:
        if self.asked == "raise":
            print("x" * 10_000_000)
            raise KeyError("gone")
        if self.asked == "hang":
            time.sleep(1000)
        if self.asked == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.asked == "exit":
            raise SystemExit(3)
        if self.asked == "fork":
            os.fork()
        if self.asked == "type":
            return object()
        if self.asked == "done":
            return "x", "perhaps", 1.0
        if self.asked == "nan":
            return "x", True, float("nan")
        if self.asked == "shout":
            return "a" * 1_000_000 + "end", False, 0.0
        return "fine", True, 1.0


class Slow:
    """Waits as long as its row says."""

    def reset(self, row: dict[str, Any]) -> None:
        self.seconds = float(row["answer"])

    def step(self, action: str) -> tuple[str, bool, float]:
        time.sleep(self.seconds)
        return "done", True, 1.0


class Moody:
    """Opens the episodes of one group differently."""

    def reset(self, row: dict[str, Any]) -> str:
        return str(random.random())

    def step(self, action: str) -> tuple[str, bool, float]:
        return "", True, 1.0


def add(a: int, b: int) -> int:
    """
    Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def look_up(word: str) -> dict[str, str]:
    """
    Look a word up.

    Args:
        word: The word.
    """
    if word == "nothing":
        raise LookupError("no such word")
    await asyncio.sleep(60.0 if word == "long" else 0.0)
    return {word: "a word"}


def undescribed(a: int) -> int:
    return a
