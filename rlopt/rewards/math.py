"""Reward functions that most runs begin with. Any of them is a `reward.fn`, alone or with others: `rlopt.rewards:mathematics`.

A grade of mathematics takes three steps: `answers` finds where the final answer stands, `notation` puts it into one notation,
and `equality` says whether it is the right one: as a number with its unit (`quantities`), a list, an interval, or an expression
(`expressions`), which math-verify (Hugging Face) reads.
"""

from rlopt.core.samples import Reference
from rlopt.rewards import latex
from rlopt.rewards.answers import Strictness, find
from rlopt.rewards.equality import equal


def mathematics(completion: str, answer: Reference, **columns: object) -> float:
    """1.0 where the final answer of `completion` means the same as `answer`, or as one of a list of them, else 0.0.

    The final answer is what the last `\\boxed{}` holds, else what follows the last `####`, else what the text calls its answer,
    else the last number. What is thought in `<think>` does not count. `answers` has the order in full.

    Raises:
        ValueError: `answer` is empty, or neither text nor a list.
    """
    return _graded(completion, answer, "anywhere")


def mathematics_marked(completion: str, answer: Reference, **columns: object) -> float:
    """As `mathematics`, but the final answer must be in a box, after `####`, or be called the answer."""
    return _graded(completion, answer, "marked")


def mathematics_boxed(completion: str, answer: Reference, **columns: object) -> float:
    """As `mathematics`, but the final answer must be in `\\boxed{}`."""
    return _graded(completion, answer, "boxed")


def _graded(completion: str, answer: Reference, strictness: Strictness) -> float:
    right = _accepted(answer)
    if not all(text.strip() for text in right):
        raise ValueError("the answer is empty, so nothing can be right")
    said = find(completion, strictness)
    return float(said is not None and any(equal(said, text) for text in right))


def _accepted(answer: Reference) -> list[str]:
    """All right answers; raises ValueError."""
    if isinstance(answer, dict):
        raise ValueError(f"the answer is a mapping of {', '.join(answer)}; name what is right in it by data.answer_key")
    return [answer] if isinstance(answer, str) else [str(one) for one in answer]


def exact(completion: str, answer: Reference, **columns: object) -> float:
    """1.0 where `completion` is `answer`, or one of a list of them, but for spaces around it."""
    return float(completion.strip() in [text.strip() for text in _accepted(answer)])


def boxed(completion: str, **columns: object) -> float:
    """1.0 where `completion` gives its final answer in `\\boxed{}` exactly once: a reward for the format alone."""
    return float(len(latex.boxes(completion)) == 1)


def brevity(completion: str, **columns: object) -> float:
    """1 for nothing, 1/2 for 1,000 characters, falling to 0: for a small weight beside another reward."""
    return 1000 / (1000 + len(completion))
