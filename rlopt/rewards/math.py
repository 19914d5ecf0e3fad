"""Reward functions that most runs begin with. Any of them is a `reward.fn`, alone or with others: `rlopt.rewards:mathematics`.

A grade of mathematics takes three steps: `answers` finds where the final answer stands, `notation` puts it into one notation,
and `equality` says whether it is the right one: as a number with its unit (`quantities`), a list, an interval, or an expression
(`expressions`), which math-verify (Hugging Face) reads.
"""

from rlopt.rewards import latex
from rlopt.rewards.answers import Strictness, find
from rlopt.rewards.equality import equal


def mathematics(completion: str, answer: str, **columns: object) -> float:
    """1.0 where the final answer of `completion` means the same as `answer`, else 0.0.

    The final answer is what the last `\\boxed{}` holds, else what follows the last `####`, else what the text calls its answer,
    else the last number. What is thought in `<think>` does not count. `answers` has the order in full.

    Raises:
        ValueError: `answer` is empty.
    """
    return _graded(completion, answer, "anywhere")


def mathematics_marked(completion: str, answer: str, **columns: object) -> float:
    """As `mathematics`, but the final answer must be in a box, after `####`, or be called the answer."""
    return _graded(completion, answer, "marked")


def mathematics_boxed(completion: str, answer: str, **columns: object) -> float:
    """As `mathematics`, but the final answer must be in `\\boxed{}`."""
    return _graded(completion, answer, "boxed")


def _graded(completion: str, answer: str, strictness: Strictness) -> float:
    if not answer.strip():
        raise ValueError("the answer is empty, so nothing can be right")
    said = find(completion, strictness)
    return float(said is not None and equal(said, answer))


def exact(completion: str, answer: str, **columns: object) -> float:
    """1.0 where `completion` is `answer`, but for spaces around it."""
    return float(completion.strip() == answer.strip())


def boxed(completion: str, **columns: object) -> float:
    """1.0 where `completion` gives its final answer in `\\boxed{}` exactly once: a reward for the format alone."""
    return float(len(latex.boxes(completion)) == 1)


def brevity(completion: str, **columns: object) -> float:
    """1 for nothing, 1/2 for 1,000 characters, falling to 0: for a small weight beside another reward."""
    return 1000 / (1000 + len(completion))
