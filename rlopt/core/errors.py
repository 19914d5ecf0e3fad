"""The exception that users see, and internal ones. It imports little, because reward processes import it."""

from dataclasses import dataclass
from typing import Literal


class RloptError(Exception):
    """An error that a user can act on: one line with the key, the value and what to do."""


class DiskFull(RloptError):
    """There is no room for what is to be written."""


def need(condition: bool, key: str, value: object, way_out: str) -> None:
    """Raise a RloptError about `key=value` unless `condition` holds."""
    if not condition:
        raise RloptError(f"{key}={value}: {way_out}")


def first_line(error: BaseException | str, longest: int = 300) -> str:
    """The message of an error as one line: its first line that is not blank, or the name of its type."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return said if len(said) <= longest else said[: longest - 3] + "..."


def last_line(error: BaseException) -> str:
    """The last line of an error's message: CUDA's errors name their cause there."""
    return first_line("\n".join(reversed(str(error).splitlines())) or type(error).__name__)


class NoEngine(Exception):
    """Groups are requested and no engine is left to sample them; its replacements wait for weights. Caught in the loop."""


class StoppedEarly(Exception):
    """A run was asked to end, saved what it had made, and ended before its last step."""


class Interrupted(Exception):
    """The run was asked to end while it waited for samples. Caught in the loop."""


@dataclass(frozen=True)
class Fault:
    """Why a sample is missing: its reward or its environment took too long, or failed. `why` names it and its input."""

    kind: Literal["timeout", "error", "env_timeout", "env_error"]
    why: str
