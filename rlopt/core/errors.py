"""The one exception that users meet, and what else may go wrong. Light, because reward processes import it."""

from dataclasses import dataclass
from typing import Literal


class RloptError(Exception):
    """A refusal that a user can act on: one line with the key, the value and the way out."""


def need(condition: bool, key: str, value: object, way_out: str) -> None:
    """Refuse `key=value` unless `condition` holds."""
    if not condition:
        raise RloptError(f"{key}={value}: {way_out}")


def first_line(error: BaseException | str, longest: int = 300) -> str:
    """What an error says, as one line: its first that is not blank, or its type's name where it says nothing."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return said if len(said) <= longest else said[: longest - 3] + "..."


def last_line(error: BaseException) -> str:
    """The last line that an error says: CUDA's errors name their cause there."""
    return first_line("\n".join(reversed(str(error).splitlines())) or type(error).__name__)


class NoEngine(Exception):
    """Groups are asked for and no engine is left to sample them; the replacements wait for weights. Never leaves the loop."""


class StoppedEarly(Exception):
    """A run was asked to end, saved what it had made, and ended before its last step."""


class Interrupted(Exception):
    """The run was asked to end while it waited for samples. Never leaves the loop."""


@dataclass(frozen=True)
class Fault:
    """Why a sample has no reward: the function took too long, or it failed. `why` has the function and its input."""

    kind: Literal["timeout", "error"]
    why: str
