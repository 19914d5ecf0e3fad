"""An episode's environment where it lives, in a process of its own: one shape for all the kinds that people write.

| what `env.fn` makes | is |
|---|---|
| `step(action)` or `step(action, calls)` | ours and Gymnasium's: text in, `wire.observed` out |
| `env_response(messages, state)` | an environment of `verifiers` with several turns |
| no `step`, and methods with docstrings | TRL's environment factory: its methods are tools, its `reward` is the score |

`env.tools` alone, functions, are an environment that ends with the first turn without a call. All methods may be
asynchronous. Others run in threads, so that a slow one holds nobody up.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from rlopt.environments.wire import Call, Messages, Observed, observed, opening, scored, text_of

Run = Callable[..., Awaitable[Any]]
"""Calls a function of the user's: `await run(function, *arguments, **named)`."""

MAKERS = ("reset", "close", "score", "reward", "env_response", "step")
"""Methods that are not tools."""


class Live(Protocol):
    """An environment in an episode."""

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | Messages | None: ...
    async def step(self, text: str, calls: list[Call]) -> Observed: ...
    async def score(self) -> tuple[float | None, dict[str, float]]: ...
    async def close(self) -> None: ...


class Tools:
    """Functions that the policy calls. A wrong call is answered with what is wrong; so is one that raises or overruns."""

    def __init__(
        self, functions: Mapping[str, Callable[..., Any]], run: Run, timeout_s: float, overran: Callable[[], None]
    ) -> None:
        self._functions, self._run, self._timeout_s, self._overran = functions, run, timeout_s, overran

    async def answer(self, calls: list[Call]) -> Observed:
        """One message of the role `tool` for each call; over where there is none."""
        answers = [await self._one(call) for call in calls]
        said = [{"role": "tool", "name": call.name, "content": text} for call, (text, _) in zip(calls, answers, strict=True)]
        return Observed(said or None, not calls, calls=len(calls), errors=sum(wrong for _, wrong in answers))

    async def _one(self, call: Call) -> tuple[str, bool]:
        if call.error:
            return f"error: {call.error}", True
        if call.name not in self._functions:
            return f"error: there is no tool {call.name}; there are {', '.join(self._functions)}", True
        function = self._functions[call.name]
        try:
            inspect.signature(function).bind(**call.arguments)
        except TypeError as error:
            return f"error: {call.name}: {error}", True
        try:
            return text_of(await asyncio.wait_for(self._run(function, **call.arguments), self._timeout_s)), False
        except TimeoutError:
            self._overran()
            return f"error: {call.name} took over {self._timeout_s:g} s", True
        except Exception as error:  # the policy is told, and may call otherwise
            return f"error: {type(error).__name__}: {error}", True


class OnlyTools:
    """An environment that is made of functions alone."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def reset(self, row: Mapping[str, Any], seed: int) -> None:
        """The row's own prompt."""

    async def step(self, text: str, calls: list[Call]) -> Observed:
        return await self._tools.answer(calls)

    async def score(self) -> tuple[float | None, dict[str, float]]:
        return None, {}

    async def close(self) -> None:
        pass


class Stepped:
    """An object with `step`: ours, or Gymnasium's. Tools of `env.tools` are answered here, and it sees the other turns."""

    def __init__(self, made: Any, run: Run, tools: Tools | None) -> None:
        self._made, self._run, self._tools = made, run, tools
        self._takes_calls = len(inspect.signature(made.step).parameters) > 1

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | Messages | None:
        return opening(await reset_of(self._made, self._run, row, seed))

    async def step(self, text: str, calls: list[Call]) -> Observed:
        if self._tools and calls:
            return await self._tools.answer(calls)
        more = [[vars(call) for call in calls]] if self._takes_calls else []
        return observed(await self._run(self._made.step, text, *more))

    async def score(self) -> tuple[float | None, dict[str, float]]:
        return await score_of(self._made, self._run)

    async def close(self) -> None:
        await close_of(self._made, self._run)


class Factory:
    """An object whose public methods are tools, as TRL's `environment_factory` makes them."""

    def __init__(self, made: Any, run: Run, tools: Tools) -> None:
        self._made, self._run, self._tools = made, run, tools

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | Messages | None:
        return opening(await reset_of(self._made, self._run, row, seed)) if hasattr(self._made, "reset") else None

    async def step(self, text: str, calls: list[Call]) -> Observed:
        answered = await self._tools.answer(calls)
        over = bool(getattr(self._made, "done", False))
        return Observed(answered.said, answered.done or over, calls=answered.calls, errors=answered.errors)

    async def score(self) -> tuple[float | None, dict[str, float]]:
        return await score_of(self._made, self._run)

    async def close(self) -> None:
        await close_of(self._made, self._run)


class Verifiers:
    """An environment of `verifiers` with several turns; one object serves all episodes, each with a state of its own."""

    def __init__(self, made: Any, run: Run) -> None:
        self._made, self._run = made, run
        self._state: dict[str, Any] = {}
        self._messages: Messages = []

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | Messages | None:
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        system = getattr(self._made, "system_prompt", None)
        lead = [{"role": "system", "content": system}] if system and prompt[0]["role"] != "system" else []
        self._messages = [*lead, *prompt]
        self._state = {
            "prompt": list(self._messages),
            "completion": [],
            "answer": row.get("answer", ""),
            "task": row.get("task", "default"),
            "info": row.get("info", {}),
            "turn": 0,
            "responses": [],
            "trajectory": [],
        }
        if hasattr(self._made, "setup_state"):
            self._state = await self._run(self._made.setup_state, self._state) or self._state
        return list(self._messages) if lead else None

    async def step(self, text: str, calls: list[Call]) -> Observed:
        turn = {"role": "assistant", "content": text}
        self._state["trajectory"].append({"prompt": list(self._messages), "completion": [turn], "reward": None})
        self._messages.append(turn)
        self._state["completion"].append(turn)
        self._state["turn"] += 1
        if await self._run(self._made.is_completed, *self._known(self._made.is_completed)):
            return Observed(None, done=True)
        said = await self._run(self._made.env_response, self._messages, self._state)
        if isinstance(said, tuple):  # of its earlier releases: messages and state
            said, self._state = said
        answer = opening(said)
        more = [{"role": "user", "content": answer}] if isinstance(answer, str) else answer or []
        self._messages += more
        self._state["completion"] += more
        over = await self._run(self._made.is_completed, *self._known(self._made.is_completed))
        return Observed(answer, done=bool(over) or not more)

    async def score(self) -> tuple[float | None, dict[str, float]]:
        rubric = getattr(self._made, "rubric", None)
        if rubric is None:
            return None, {}
        total, parts = 0.0, dict[str, float]()
        for function, weight, own in _graders(rubric):
            known = {**self._state, "state": self._state, **own}
            value, _ = scored(await self._run(function, **_accepted(function, known)))
            if value is not None:
                parts[getattr(function, "__name__", type(function).__name__)] = value
                total += weight * value
        return total, parts

    async def close(self) -> None:
        pass  # it serves other episodes

    def _known(self, function: Callable[..., Any]) -> list[Any]:
        """`is_completed(state)` now, `is_completed(messages, state)` before."""
        return [self._messages, self._state] if "messages" in inspect.signature(function).parameters else [self._state]


def methods_of(made: Any) -> dict[str, Callable[..., Any]]:
    """The public methods of an object that are tools: those with a docstring."""
    names = [name for name in dir(type(made)) if not name.startswith("_") and name not in MAKERS]
    found = {name: getattr(made, name) for name in names if not isinstance(inspect.getattr_static(made, name), property)}
    return {name: method for name, method in found.items() if callable(method) and inspect.getdoc(method)}


def is_factory(made: Any) -> bool:
    """Whether an object is what TRL's environment factories make."""
    return not hasattr(made, "step") and not hasattr(made, "env_response")


async def reset_of(made: Any, run: Run, row: Mapping[str, Any], seed: int) -> Any:
    """Call `reset` with what it takes: `row` and `seed`, Gymnasium's `seed` and `options`, or the row's columns by name."""
    parameters = inspect.signature(made.reset).parameters
    seeded = {"seed": seed} if "seed" in parameters else {}
    others = [name for name, one in parameters.items() if name != "seed" and one.kind is not one.VAR_KEYWORD]
    if "options" in others:
        return await run(made.reset, **seeded, options=dict(row))
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return await run(made.reset, **{**row, **seeded})
    if len(others) == 1 and (others[0] == "row" or others[0] not in row):
        return await run(functools.partial(made.reset, row), **seeded)
    return await run(made.reset, **{name: row[name] for name in others if name in row}, **seeded)


async def score_of(made: Any, run: Run) -> tuple[float | None, dict[str, float]]:
    """What `score()` returns, or the number `reward` of an object that has no such method."""
    score = getattr(made, "score", None)
    if callable(score):
        return scored(await run(score))
    reward = getattr(made, "reward", None)
    return scored(await run(reward) if callable(reward) else reward)


async def close_of(made: Any, run: Run) -> None:
    close = getattr(made, "close", None)
    if callable(close):
        await run(close)


def _graders(rubric: Any) -> list[tuple[Callable[..., Any], float, Mapping[str, Any]]]:
    """The functions of a rubric of `verifiers`, and of the rubrics in it: function, weight, and what it is called with."""
    functions = list(getattr(rubric, "reward_funcs", None) or getattr(rubric, "funcs", []))
    weights = list(getattr(rubric, "reward_weights", None) or getattr(rubric, "weights", None) or [1.0] * len(functions))
    own = {"parser": getattr(rubric, "parser", None), **getattr(rubric, "class_objects", {})}
    found = [(function, weight, own) for function, weight in zip(functions, weights, strict=True)]
    return found + [one for inner in getattr(rubric, "rubrics", ()) for one in _graders(inner)]


def _accepted(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return dict(known)
    return {name: known[name] for name in parameters if name in known}
