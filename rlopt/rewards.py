"""Rewards: a function of the user's, run in processes of its own with a deadline.

    reward(prompt, completion, answer, **extra) -> float | {"score": float, ...} | None

`None` leaves the sample out. A function that raises, dies or overruns ends the run with its name and input: a silent 0
would teach the model something.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlopt import processes
from rlopt.errors import RloptError

RewardFunction = Callable[..., float | Mapping[str, float] | None]


@dataclass(frozen=True)
class Scored:
    """What a reward function said of one completion: the total, and whatever it reported beside it."""

    reward: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """One call of a reward function."""

    prompt: str
    completion: str
    answer: str


def load(name: str) -> RewardFunction:
    """The function that `module:function` names."""
    return processes.load("reward.fn", name)  # type: ignore[return-value]


class RewardPool:
    """`workers` processes that score lists of questions; a list that takes over `timeout_s` seconds kills its process."""

    def __init__(self, name: str, workers: int, timeout_s: float) -> None:
        self._name, self._pool = name, processes.Pool("reward.fn", name, workers, timeout_s)

    def score(self, questions: list[Question]) -> list[Scored | None]:
        """One result per question, in order. Blocks; call it from a thread when that matters.

        Raises:
            RloptError: the function raised, overran, died, or returned something else than a finite number.
        """
        answers = self._pool.call(questions)
        return [_checked(self._name, question, answer) for question, answer in zip(questions, answers, strict=True)]

    def close(self) -> None:
        self._pool.close()


def _checked(name: str, question: Question, answer: object) -> Scored | None:
    if answer is None:
        return None
    parts: dict[object, object] = dict(answer) if isinstance(answer, Mapping) else {"score": answer}
    numbers = {str(key): float(value) for key, value in parts.items() if isinstance(value, int | float)}
    if len(numbers) < len(parts) or not all(math.isfinite(value) for value in numbers.values()) or "score" not in numbers:
        raise RloptError(f"reward.fn={name} returned {answer!r} for {question!r}; want a finite number or a dict with 'score'")
    return Scored(numbers.pop("score"), numbers)
