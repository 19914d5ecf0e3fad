"""Rewards: a function of the user's, run in processes of its own with a deadline, so that it can hang, leak or crash alone.

    reward(prompt, completion, answer, **extra) -> float | {"score": float, ...} | None

`None` leaves the sample out. A function that raises, dies or overruns ends the run with its name and input: a silent 0
would teach the model something.
"""

import importlib
import math
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

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
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RloptError(f"reward.fn={name}: cannot be imported ({error}); want module:function") from error
    if not colon or not callable(function):
        raise RloptError(f"reward.fn={name}: not a function; want module:function")
    return function  # type: ignore[no-any-return]


class RewardPool:
    """`workers` processes that score lists of questions; a list that takes over `timeout_s` seconds kills its process."""

    def __init__(self, name: str, workers: int, timeout_s: float) -> None:
        load(name)  # a wrong name is refused here rather than in a child
        self._name, self._timeout_s = name, timeout_s
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        for _ in range(workers):
            self._idle.put(_Worker(name))

    def score(self, questions: list[Question]) -> list[Scored | None]:
        """One result per question, in order. Blocks; call it from a thread when that matters.

        Raises:
            RloptError: the function raised, overran, died, or returned something else than a finite number.
        """
        return self._threads.submit(self._score, questions).result()

    def close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().kill()

    def _score(self, questions: list[Question]) -> list[Scored | None]:
        worker = self._idle.get()
        try:
            answers = worker.ask(questions, self._timeout_s)
        except (TimeoutError, EOFError, OSError) as error:
            worker.kill()
            worker = _Worker(self._name)
            what = f"took over reward.timeout_s={self._timeout_s}" if isinstance(error, TimeoutError) else "died"
            raise RloptError(f"reward.fn={self._name} {what} on {len(questions)} completions like {questions[0]!r}") from None
        finally:
            self._idle.put(worker)
        return [_checked(self._name, question, answer) for question, answer in zip(questions, answers, strict=True)]


class _Worker:
    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, child), daemon=True)
        self._process.start()
        child.close()

    def ask(self, questions: list[Question], timeout_s: float) -> list[object]:
        self._pipe.send(questions)
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        answers: list[object] = self._pipe.recv()
        return answers

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(name: str, pipe: Connection) -> None:
    function = load(name)
    while True:
        try:
            questions: list[Question] = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answers: list[object] = []
        for q in questions:
            try:
                answers.append(function(prompt=q.prompt, completion=q.completion, answer=q.answer))
            except Exception as error:  # whatever user code raises is reported by name in the parent
                where = traceback.extract_tb(error.__traceback__)[-1]
                answers.append(RloptError(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"))
        pipe.send(answers)


def _checked(name: str, question: Question, answer: object) -> Scored | None:
    if answer is None:
        return None
    if isinstance(answer, RloptError):
        raise RloptError(f"reward.fn={name} raised on {question!r}: {answer}")
    parts: dict[object, object] = dict(answer) if isinstance(answer, Mapping) else {"score": answer}
    numbers = {str(key): float(value) for key, value in parts.items() if isinstance(value, int | float)}
    if len(numbers) < len(parts) or not all(math.isfinite(value) for value in numbers.values()) or "score" not in numbers:
        raise RloptError(f"reward.fn={name} returned {answer!r} for {question!r}; want a finite number or a dict with 'score'")
    return Scored(numbers.pop("score"), numbers)
