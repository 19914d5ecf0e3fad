"""Rows that cannot be used: why, and how they are refused or told."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from rlopt.core.errors import RloptError


class UnusableRow(Exception):
    """Why a recorded row cannot be used. Never leaves its reader."""


def refuse_unusable(where: str, dropped: Mapping[str, list[int]], usable: int, what: str, place: str) -> None:
    """Refuse a file of which some rows cannot be used.

    Args:
        where: the setting and its value.
        dropped: reason to the numbers of its rows.
        usable: rows that can be used.
        what, place: what the rows hold and how one is found: `rows` and `row`, or `groups` and `line`.
    """
    count = sum(map(len, dropped.values()))
    if count:
        reasons = "; ".join(f"{place} {numbers[0]}: {why}" + _more(numbers) for why, numbers in dropped.items())
        raise RloptError(
            f"{where}: {count} of {count + usable} {what} are unusable ({reasons}); mend them, or data.invalid_rows=drop"
        )


def _more(numbers: list[int]) -> str:
    return f" (and {len(numbers) - 1} more like it)" if len(numbers) > 1 else ""


def need_characters(what: Any) -> None:
    """Refuse a text, or anything with texts in it, that no file could hold.

    Raises:
        Unusable: a character of it has one half alone.
    """
    try:
        (what if isinstance(what, str) else json.dumps(what, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        raise UnusableRow("has half a character (a surrogate without its other half)") from None


def normalize_text(text: str) -> str:
    """For telling whether two texts say the same: characters in their usual form, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
