"""The reward of reasoning-gym's tasks: each has a scorer of its own."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from rlopt.rewards import latex

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def reasoning_gym(completion: str, reasoning_gym: Mapping[str, Any], **columns: object) -> float:
    """What the task's scorer gives the answer, 0 to 1.

    The answer is what stands in the last `<answer>` tags, else in the last `\\boxed{}`, else the last line; what comes before
    `</think>` does not count. `reasoning_gym` is the column that `data.train=reasoning_gym:TASK` makes.
    """
    return float(_scorer(reasoning_gym["task"])(final(completion), reasoning_gym["entry"]))


def final(completion: str) -> str:
    """The answer in a completion."""
    said = completion.rpartition("</think>")[2]
    if tagged := _TAGGED.findall(said):
        return str(tagged[-1]).strip()
    if boxes := latex.boxes(said):
        return boxes[-1].strip()
    return said.strip().rpartition("\n")[2].strip()


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym as gym

    return gym.get_score_answer_fn(task)
