"""Which columns of a row hold prompt and answer, and what of an answer counts."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlopt.config.sections import DataConfig
from rlopt.core.errors import RloptError
from rlopt.core.samples import Reference
from rlopt.data.readers import look_up
from rlopt.data.unusable import UnusableRow
from rlopt.data.wording import Messages
from rlopt.rewards import latex

AnswerFormat = Literal["text", "hash", "boxed"]


SCHEMAS = (
    ("verl's columns", "prompt", "reward_model.ground_truth"),
    ("TRL's columns", "prompt", "answer"),
    ("TRL's columns", "prompt", "solution"),
    ("questions and answers", "question", "answer"),
    ("problems and answers", "problem", "answer"),
    ("problems and solutions", "problem", "solution"),
    ("prompts and their truth", "prompt", "ground_truth"),
    ("questions and their truth", "question", "ground_truth"),
    ("problems and expected answers", "problem", "expected_answer"),
)
"""Names of known column pairs (prompt, answer). The first pair that the first row has is taken for all rows."""


MEANING: Mapping[AnswerFormat, str] = {"text": "", "hash": " after ####", "boxed": r" in \boxed{}"}


ALONE = "prompts without answers"
"""The name of the format of rows whose reward needs no answer, or finds it in another column."""


def recognize_columns(where: str, rows: Sequence[Mapping[str, Any]], config: DataConfig) -> tuple[str, str, str | None]:
    """The name of the format of the rows, and its keys of prompt and answer; the first row that has both decides.

    Where no row has both, and no key of answers is named, prompts alone will do.

    Raises:
        RloptError: the columns are not known, or those that the config names are not there.
    """
    check_named(where, rows, config)
    for row in rows:
        for called, prompt_key, answer_key in SCHEMAS:
            keys = config.prompt_key or prompt_key, config.answer_key or answer_key
            if all(look_up(row, key) is not None for key in keys):
                return called if keys == (prompt_key, answer_key) else "columns as named", *keys
    for key in [config.prompt_key] if config.prompt_key else dict.fromkeys(prompt_key for _, prompt_key, _ in SCHEMAS):
        if not config.answer_key and any(look_up(row, key) is not None for row in rows):
            return ALONE, key, None
    raise RloptError(f"{where}: columns {_there(rows)} do not say which holds what; set data.prompt_key and data.answer_key")


def check_named(where: str, rows: Sequence[Mapping[str, Any]], config: DataConfig) -> None:
    """Refuse columns that the config names and no row has.

    Raises:
        RloptError: there is one.
    """
    for setting, key in (("data.prompt_key", config.prompt_key), ("data.answer_key", config.answer_key)):
        if key and all(look_up(row, key) is None for row in rows):
            raise RloptError(f"{setting}={key}: {where} has no such column; there are {_there(rows)}")


def _there(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({column for row in rows[:1000] for column in row}))


_THOUSANDS = re.compile(r"[-+]?[$€£]?\d{1,3}(,\d{3})+(\.\d+)?")


def reference_of(row: Mapping[str, Any], key: str) -> Reference:
    """The answer of a row as it stands there; raises UnusableRow."""
    value = look_up(row, key)
    if not isinstance(value, list | dict):
        return text_of(row, key)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UnusableRow(f"{key} has something in it that is not JSON") from None
    if not value:
        raise UnusableRow(f"{key} is empty")
    return value


def texts_in(reference: Reference) -> list[str]:
    """A text, or those of a list. What a mapping holds is for the reward alone."""
    several = [reference] if isinstance(reference, str) else reference if isinstance(reference, list) else []
    return [one for one in several if isinstance(one, str)]


def final_reference(reference: Reference, kind: AnswerFormat) -> Reference:
    """The final answer in a reference answer; of a list, in each of its texts; raises UnusableRow."""
    if isinstance(reference, list):
        return [final_answer(one, kind) if isinstance(one, str) else one for one in reference]
    return final_answer(reference, kind) if isinstance(reference, str) else reference


def final_answer(text: str, kind: AnswerFormat) -> str:
    """The final answer in a reference answer: all of it, what follows the last `####`, or what the last `\\boxed{}` holds."""
    if kind == "hash":
        text = text.rpartition("####")[2].strip() if "####" in text else ""
        text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    elif kind == "boxed":
        text = next(reversed(latex.boxes(text)), "")
    text = text.strip()
    if not text:
        raise UnusableRow("the answer is empty" if kind == "text" else f"the answer has nothing{MEANING[kind]}")
    return text


def guess_format(answers: list[str]) -> AnswerFormat:
    """The format of most of the answers; the others then have no final answer."""
    if 2 * sum("####" in answer for answer in answers) > len(answers):
        return "hash"
    return "boxed" if 2 * sum(bool(latex.boxes(answer)) for answer in answers) > len(answers) else "text"


def prompt_of(row: Mapping[str, Any], key: str) -> str | Messages:
    """The prompt of a row, text or messages; raises UnusableRow."""
    value = look_up(row, key)
    return [_message(key, message) for message in value] if isinstance(value, list) and value else text_of(row, key)


def _message(key: str, message: Any) -> dict[str, Any]:
    """A message with all its fields; raises UnusableRow."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnusableRow(f"{key} is a list, but not of messages with role and content")
    kept = {name: value for name, value in message.items() if value is not None}  # in a table every row has all columns
    content = kept.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if any(part is None for part in parts):
            raise UnusableRow(f"{key} has a message with content that is not text")
        kept["content"] = "".join(map(str, parts))
    elif not isinstance(content, str) and not (content is None and "tool_calls" in kept):
        raise UnusableRow(f"{key} is a list, but not of messages with role and content")
    return kept


def text_of(row: Mapping[str, Any], key: str) -> str:
    value = look_up(row, key)
    if value is None:
        raise UnusableRow(f"no {key}, only {', '.join(sorted(row))}")
    if not isinstance(value, str | int | float):
        raise UnusableRow(f"{key} is not text but a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableRow(f"{key} is {value}")
    if not str(value).strip():
        raise UnusableRow(f"{key} is empty")
    return str(value)


def answer_of(row: Mapping[str, Any]) -> str:
    """The value of `answer` where nothing depends on it; empty where it is missing or NaN."""
    value = row.get("answer")
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)
