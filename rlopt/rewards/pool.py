"""Reward functions of the user's, run in separate processes with a deadline for each call.

    reward(prompt, completion, answer, **columns) -> float | {"score": float, ...} | None

`answer` is a text, or the list or mapping that the row has; `columns` are the row's others. Functions that were written for
verl, `compute_score(data_source, solution_str, ground_truth, extra_info)`, and for TRL, `f(completions, **columns)`, are called
with their own parameters, by which they are recognized. What is asynchronous is awaited. A score is a number of Python, numpy
or torch. `None` leaves the sample out. So does a call that takes too long or ends its process; the run continues, and counts
them. A function that raises ends the run with its name and input, or with `reward.on_error=skip` is counted too. None of it
ever becomes a reward of 0, which would train the model.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from rlopt.core import sandbox, user_code
from rlopt.core.errors import Fault, RloptError
from rlopt.core.killable import StartMethod
from rlopt.core.samples import Prompt, Reference

Value = float | Mapping[str, Any] | None
RewardFunction = Callable[..., Value]


@dataclass(frozen=True)
class Scored:
    """The reward of one completion: the total, and what the function reported beside it."""

    reward: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """One call of a reward function."""

    prompt: str
    completion: str
    answer: Reference
    columns: Mapping[str, Any] = field(default_factory=dict)


def load(names: str | Sequence[str], weights: Sequence[float] | None = None) -> RewardFunction:
    """The function that `reward.fn` names, taking the fields of a `Question`; of several, their weighted sum.

    Raises:
        RloptError: one cannot be imported, or has unknown parameters.
    """
    several = [names] if isinstance(names, str) else list(names)
    functions = [_adapted(name, user_code.load("reward.fn", name)) for name in several]
    if len(functions) == 1 and weights is None:
        return functions[0]
    labels = [name.rpartition(":")[2] for name in several]
    if len(set(labels)) < len(labels) or "score" in labels:
        labels = several
    return partial(_sum, list(zip(labels, functions, weights or [1.0] * len(functions), strict=True)))


def need_answers(names: str | Sequence[str], unanswered: Mapping[str, Prompt]) -> None:
    """Refuse data sets without answers, for functions that ask for one.

    Args:
        unanswered: a prompt of each such data set, by its key.

    Raises:
        RloptError: there is one, and a function has a parameter `answer` or `ground_truth` without a default.
    """
    if not unanswered:
        return
    for name in [names] if isinstance(names, str) else names:
        parameters = inspect.signature(user_code.load("reward.fn", name)).parameters
        named = [parameters[key] for key in ("answer", "ground_truth") if key in parameters]
        asked = [parameter.name for parameter in named if parameter.default is parameter.empty]
        for key, prompt in unanswered.items() if asked else ():
            others = f" (beside prompts there are {', '.join(sorted(prompt.columns))})" if prompt.columns else ""
            raise RloptError(
                f"{key}={prompt.source}: has no column that is known to hold answers{others}, and reward.fn={name} asks for "
                f"{asked[0]}; set data.answer_key, or give a reward that needs none"
            )


class RewardPool:
    """`workers` processes that score lists of questions."""

    def __init__(
        self,
        names: str | Sequence[str],
        weights: Sequence[float] | None,
        workers: int,
        timeout_s: float,
        on_error: Literal["stop", "skip"],
        start_method: StartMethod = "spawn",
    ) -> None:
        shown = names if isinstance(names, str) else ",".join(names)
        self._where, self._on_error = f"reward.fn={shown}", on_error
        self._pool = sandbox.Pool("reward.fn", shown, workers, timeout_s, partial(load, names, weights), start_method)

    def score(self, questions: list[Question]) -> list[Scored | Fault | None]:
        """One result per question, in order: None where it leaves the sample out, a fault where there is none.

        Blocks; call it from a thread when that matters.

        Raises:
            RloptError: `reward.on_error` is stop, and the function raised or returned something else than a finite number.
        """
        answers = self._pool.attempt(questions)
        return [self._checked(question, answer) for question, answer in zip(questions, answers, strict=True)]

    def close(self) -> None:
        self._pool.close()

    def _checked(self, question: Question, answer: object) -> Scored | Fault | None:
        if answer is None:
            return None
        if isinstance(answer, sandbox.Failed):
            why = self._pool.explain(question, answer)
            if answer.kind == "raised" and self._on_error == "stop":
                raise RloptError(f"{why}; mend it, or reward.on_error=skip")
            return Fault("timeout" if answer.kind == "timeout" else "error", why)
        parts: dict[str, Any] = dict(answer) if isinstance(answer, dict) else {"score": answer}
        numbers = {key: float(value) for key, value in parts.items() if isinstance(value, float)}
        if len(numbers) < len(parts) or not all(map(math.isfinite, numbers.values())) or "score" not in numbers:
            want = "want a finite number or a dict with 'score'"
            why = f"{self._where} returned {answer!r} for {question!r}; {want}"
            if self._on_error == "stop":
                raise RloptError(why)
            return Fault("error", why)
        return Scored(numbers.pop("score"), numbers)


def _adapted(name: str, function: user_code.Function) -> RewardFunction:
    """`function`, wrapped to take the fields of a `Question`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin
        raise RloptError(f"reward.fn={name}: its parameters cannot be read; wrap it in a function of your own") from None
    if {"solution_str", "ground_truth"} <= parameters.keys():
        return partial(_verl, function, _accepted(parameters))
    if "completions" in parameters:
        if "environments" in parameters:
            raise RloptError(f"reward.fn={name}: asks for environments, which live elsewhere; give their class a score()")
        lacking = [key for key in ("completion_ids", "trainer_state") if key in parameters]
        if lacking:
            raise RloptError(
                f"reward.fn={name}: asks for {', '.join(lacking)}, which TRL's trainer has and rlopt has not; wrap it"
            )
        return partial(_trl, function, _accepted(parameters))
    if "completion" not in parameters and _accepted(parameters) is not None:
        raise RloptError(
            f"reward.fn={name}: takes ({', '.join(parameters)}); want (prompt, completion, answer, **columns), "
            "verl's (data_source, solution_str, ground_truth, extra_info) or TRL's (completions, **columns)"
        )
    return partial(_ours, function, _accepted(parameters))


def _accepted(parameters: Mapping[str, inspect.Parameter]) -> set[str] | None:
    """The keywords that a function takes; None: all."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


_LOOP = asyncio.Runner()
"""One event loop for all calls, so that a function can keep its connections."""


def _call(function: user_code.Function, accepted: set[str] | None, values: Mapping[str, Any]) -> Any:
    """What the function returns for the keywords that it takes; awaited where that is to be."""
    said: Any = function(**{key: value for key, value in values.items() if accepted is None or key in accepted})
    if inspect.isgenerator(said) or inspect.isasyncgen(said):
        raise TypeError("is a generator, which gives no value; return the score")
    return _LOOP.run(_awaited(said)) if inspect.isawaitable(said) else said


async def _awaited(said: Any) -> Any:
    return await said


def _numbers(said: Any) -> Any:
    """A score, or the values of a dict, as floats where they are numbers of any library.

    Raises:
        OverflowError: one is too large for a float.
    """
    if isinstance(said, Mapping):
        return {str(key): _numbers(value) for key, value in said.items()}
    if said is None or isinstance(said, str | bytes):
        return said
    with suppress(TypeError, ValueError, RuntimeError):  # what is not a number stays, and the caller refuses it
        return float(said)
    return said


def _ours(
    function: user_code.Function,
    accepted: set[str] | None,
    prompt: str,
    completion: str,
    answer: Reference,
    columns: Mapping[str, Any],
) -> Value:
    return _numbers(_call(function, accepted, {**columns, "prompt": prompt, "completion": completion, "answer": answer}))  # type: ignore[no-any-return]


def _verl(
    function: user_code.Function,
    accepted: set[str] | None,
    prompt: str,
    completion: str,
    answer: Reference,
    columns: Mapping[str, Any],
) -> Value:
    kept = columns.get("reward_model")
    values = {
        "data_source": columns.get("data_source", ""),
        "solution_str": completion,
        "ground_truth": kept["ground_truth"] if isinstance(kept, Mapping) and "ground_truth" in kept else answer,
        "extra_info": columns.get("extra_info"),
    }
    said = _numbers(_call(function, accepted, values))
    if not isinstance(said, Mapping):
        return said  # type: ignore[no-any-return]
    return {key: value for key, value in said.items() if isinstance(value, float)}  # verl allows texts there too


def _trl(
    function: user_code.Function,
    accepted: set[str] | None,
    prompt: str,
    completion: str,
    answer: Reference,
    columns: Mapping[str, Any],
) -> Value:
    """In a batch of one: the deadline is for each completion. An episode's completion is its conversation."""
    messages, played = columns.get("messages"), columns.get("conversation")
    values = {key: [value] for key, value in {"answer": answer, **columns}.items() if key not in ("messages", "conversation")}
    values["prompts"] = [messages or prompt]
    values["completions"] = [played or ([{"role": "assistant", "content": completion}] if messages else completion)]
    (value,) = _call(function, accepted, values)
    return _numbers(value)  # type: ignore[no-any-return]


def _sum(
    functions: Sequence[tuple[str, RewardFunction, float]],
    prompt: str,
    completion: str,
    answer: Reference,
    columns: Mapping[str, Any],
) -> Value:
    """The weighted sum of what the functions say, and the score of each. A function that returns None is left out."""
    terms, parts = list[tuple[float, Any]](), dict[str, Any]()
    for label, function, weight in functions:
        said = function(prompt=prompt, completion=completion, answer=answer, columns=columns)
        if said is None:
            continue
        own = dict(said) if isinstance(said, Mapping) else {"score": said}
        parts[label] = own.pop("score")
        parts |= {f"{label}/{key}": value for key, value in own.items()}
        terms.append((weight, parts[label]))
    return {**parts, "score": _total(terms)} if terms else None


def _total(terms: Sequence[tuple[float, Any]]) -> float:
    """The sum of weight times score as decimals: 0.7 + 0.2 + 0.1 is 1, which in binary it is not."""
    if not all(isinstance(value, float) and math.isfinite(value) for _, value in terms):
        return math.nan  # which the caller refuses
    return float(sum(Fraction(repr(weight)) * Fraction(repr(value)) for weight, value in terms))
