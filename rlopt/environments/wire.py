"""What travels between an episode and the process in which its environment lives."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]
"""As chat templates read them: `role`, `content`, and whatever else a template knows."""


@dataclass(frozen=True)
class Call:
    """A call of a tool: its name and arguments, or the `error` that its text was not a call."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Observed:
    """What an environment answered to a turn.

    Attributes:
        said: text or messages for the policy; None where there is nothing to say.
        done: whether the episode is over.
        reward: of this turn, None where the environment gave none.
        parts: what it reported beside it.
        calls, errors: of tools, and how many of them were answered with an error.
        cut: observations that were too long.
    """

    said: str | Messages | None
    done: bool = False
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    errors: int = 0
    cut: int = 0


def opening(said: Any) -> str | Messages | None:
    """What `reset` returned: text, messages, or None for the row's own prompt; Gymnasium's pair with an info too."""
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], Mapping):
        said = said[0]
    return _said("reset", said)


def observed(said: Any) -> Observed:
    """What `step` returned.

    `(observation, done, reward)`, Gymnasium's `(observation, reward, terminated, truncated, info)`, its earlier
    `(observation, reward, done, info)`, or a mapping with these names. A reward is a number, a dict with `score`, or None.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(said, Mapping):
        known = {"observation", "done", "reward", "terminated", "truncated"}
        if "observation" not in said:
            raise TypeError(f"step returned a dict without observation: {sorted(map(str, said))}")
        parts = {str(name): value for name, value in said.items() if name not in known}
        over = bool(said.get("done") or said.get("terminated") or said.get("truncated"))
        reward, more = scored(said.get("reward"))
        return Observed(_said("step", said["observation"]), over, reward, {**_numbers(parts), **more})
    if not isinstance(said, tuple | list) or len(said) not in (3, 4, 5):
        raise TypeError(f"step returned {_short(said)}; want (observation, done, reward)")
    if len(said) == 3:
        observation, done, reward = said
    elif len(said) == 4:
        observation, reward, done, _ = said
    else:
        observation, reward, terminated, truncated, _ = said
        done = bool(terminated) or bool(truncated)
    if not isinstance(done, bool | int) and not hasattr(done, "item"):
        raise TypeError(f"step returned done={_short(done)}; want (observation, done, reward), with True or False for done")
    value, more = scored(reward)
    return Observed(_said("step", observation), bool(done), value, more)


def scored(said: Any) -> tuple[float | None, dict[str, float]]:
    """A reward as a number, and what stands beside its `score` in a dict.

    Raises:
        TypeError: it is not a finite number, a dict with a score, or None.
    """
    if said is None:
        return None, {}
    if isinstance(said, Mapping):
        parts = _numbers(said)
        if "score" not in parts:
            raise TypeError(f"a reward is {_short(said)}; want a finite number, a dict with score, or None")
        return parts.pop("score"), parts
    value = _number(said)
    if value is None:
        raise TypeError(f"a reward is {_short(said)}; want a finite number, a dict with score, or None")
    return value, {}


def cut(text: str, most: int) -> tuple[str, bool]:
    """A text without its middle where it is longer than `most` characters, and whether it was."""
    if len(text) <= most:
        return text, False
    mark = f" ... {len(text) - most} characters left out ... "
    return text[: most // 2] + mark + text[len(text) - (most - most // 2) :], True


def shortened(said: str | Messages | None, most: int) -> tuple[str | Messages | None, int]:
    """What was said with every text cut, and how many were."""
    if said is None or isinstance(said, str):
        text, was = cut(said or "", most)
        return (None if said is None else text), int(was)
    kept, count = [], 0
    for message in said:
        text, was = cut(message["content"], most)
        kept.append({**message, "content": text})
        count += was
    return kept, count


def text_of(value: Any) -> str:
    """What a tool returned, as the text that the policy reads."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _said(where: str, said: Any) -> str | Messages | None:
    if said is None or isinstance(said, str):
        return said
    if isinstance(said, list) and all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in said):
        if not all(isinstance(one.get("content"), str) for one in said):
            raise TypeError(f"{where} returned a message whose content is not text: {_short(said)}")
        return [dict(one) for one in said] or None
    if isinstance(said, int | float) or hasattr(said, "tolist"):  # an observation of Gymnasium's: a number, an array
        return str(said)
    raise TypeError(f"{where} returned {_short(said)} for the policy to read; want text, or messages with role and content")


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    found = {str(name): _number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    """A finite number of Python, numpy or torch."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
