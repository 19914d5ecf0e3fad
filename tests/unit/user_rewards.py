"""Reward functions as users write them, good and bad."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


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


def trl_trainer(completions: list[str], completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [0.0]
