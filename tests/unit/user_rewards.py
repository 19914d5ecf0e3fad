"""Reward functions as users write them, good and bad."""

import asyncio
import os
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch


def length(prompt: str, completion: str, answer: str, **extra: object) -> dict[str, float]:
    return {"score": float(len(completion)), "format": 1.0}


def moody(completion: str, **extra: object) -> float | None:
    if completion == "skip":
        return None
    if completion == "raise":
        raise ValueError("no idea")
    if completion == "hang":
        time.sleep(60)
    if completion == "die":
        os._exit(3)
    if completion == "nan":
        return float("nan")
    return 1.0


not_a_function = 3


def asleep(**call: object) -> None:
    time.sleep(60)


def leave_a_child_behind(completion: str) -> None:
    """Hangs with a child that is in another session; `completion` is where its pid goes."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(completion).write_text(str(child.pid))
    child.wait()


def leave_an_orphan_behind(completion: str) -> None:
    """Hangs, and what it started has left its parent and its session; `completion` is where its pid goes."""
    daemon = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)"
    line = f"{daemon}; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    subprocess.run([sys.executable, "-c", line, completion], check=True)
    time.sleep(60)


def fork(completion: str) -> str:
    os.fork()
    return completion


def chatty(completion: str) -> float:
    print("x" * 5_000_000, end="")
    os.write(1, b"past the stream\n")
    if completion == "raise":
        raise ValueError("as asked")
    return 1.0


def numpy_number(completion: str) -> object:
    return object() if completion == "odd" else np.float32(completion)


def verl_style(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, int] | None = None) -> object:
    assert (data_source, ground_truth, extra_info) == ("sums", "two", {"index": 7})
    return {"score": float(solution_str == "2"), "acc": True, "pred": solution_str}


def trl_style(completions: list[object], prompts: list[object], answer: list[str], **columns: list[object]) -> list[float]:
    assert (len(completions), answer, columns["level"]) == (1, ["raw #### 2"], [3])
    if isinstance(prompts[0], list):
        assert prompts == [[{"role": "user", "content": "1+1="}]]
        assert completions == [[{"role": "assistant", "content": "2"}]]
    else:
        assert (prompts, completions) == (["1+1="], ["2"])
    return [4.0]


def our_style(prompt: str, completion: str, answer: str, **columns: object) -> float:
    assert (prompt, completion, answer) == ("1+1=", "2", "2")
    return float(str(columns["level"]))


def our_short_style(completion: str, answer: str) -> float:
    return float(completion == answer)


def odd_style(text: str, gold: str) -> float:
    return 0.0


def last_word_ours(prompt: str, completion: str, answer: str, **columns: object) -> float:
    return float(completion.split()[-1] == answer)


def last_word_verl(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> float:
    return last_word_ours("", solution_str, ground_truth)


def last_word_trl(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    return [last_word_ours("", one, right) for one, right in zip(completions, answer, strict=True)]


def score(completion: str, **columns: object) -> float:
    return 3.0


def trl_solution(completions: list[str], solution: list[str], **columns: object) -> list[float]:
    return [float(solution == ["raw"])]


def trl_turns(completions: list[list[dict[str, str]]], **columns: object) -> list[float]:
    return [float([message["role"] for message in completions[0]] == ["assistant", "tool", "assistant"])]


def trl_environments(completions: list[str], environments: list[object], **columns: object) -> list[float]:
    return [0.0]


def trl_trainer(completions: list[str], completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [0.0]


async def awaited(completion: str, **columns: object) -> object:
    await asyncio.sleep(0)
    if completion == "raise":
        raise ValueError("as asked")
    return np.float32(2)


async def awaited_verl(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> object:
    return {"score": np.int64(3), "acc": np.bool_(True), "pred": solution_str}


async def awaited_trl(completions: list[str], **columns: object) -> list[object]:
    return [np.array(4.0) for _ in completions]


class Counting:
    """Keeps something of its event loop from one call to the next."""

    def __init__(self) -> None:
        self.lock: asyncio.Lock | None = None

    async def __call__(self, completion: str, **columns: object) -> float:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            await asyncio.sleep(0)
            return 1.0


counting = Counting()


def streamed(completion: str, **columns: object) -> object:
    yield 1.0


async def streamed_later(completion: str, **columns: object) -> object:
    yield 1.0


def exotic(completion: str, **columns: object) -> object:
    values: dict[str, object] = {
        "numpy": np.float32(1),
        "array": np.array([1.0]).reshape(()),
        "torch": torch.tensor(1.0),
        "decimal": Decimal("1.0"),
        "fraction": Fraction(1, 1),
        "bool": True,
        "in a dict": {"score": np.float32(1)},
        "large": 10**400,
        "infinite": float("inf"),
        "text": "1.0",
        "two": np.array([1.0, 2.0]),
        "list": [1.0],
        "nested": {"score": {"score": 1.0}},
        "set": {1.0},
    }
    if completion == "circle":
        circle: dict[str, object] = {"score": 1.0}
        circle["self"] = circle
        return circle
    return values[completion]


def one(completion: str, **columns: object) -> float:
    return 1.0


def two(completion: str, **columns: object) -> float:
    return 1.0


def three(completion: str, **columns: object) -> float:
    return 1.0


def first_waits(completion: str) -> float:
    """The number of processes that were asked; the first of them does not answer."""
    Path(completion, str(os.getpid())).touch()
    asked = len(list(Path(completion).iterdir()))
    if asked == 1:
        time.sleep(60)
    return float(asked)


def without_answer(completion: str, target: int) -> float:
    return float(completion == str(target))


def with_default(completions: list[str], answer: str = "") -> list[float]:
    return [0.0]


def gets(completion: str, answer: dict[str, list[str]]) -> float:
    return float(completion in answer["target"])


def gets_for_trl(completions: list[str], answer: list[dict[str, list[str]]]) -> list[float]:
    return [gets(text, right) for text, right in zip(completions, answer, strict=True)]
