"""Whether two expressions are the same mathematics: math-verify (Hugging Face) reads them, and compares what is no number.

Its closeness is absolute, so it is never asked about numbers. `i` is the imaginary unit where no other letter stands.
"""

import logging
import re
import threading
from fractions import Fraction
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import I, S

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns about its missing timeout; our caller has one

CLOSE = Fraction(1, 10**6)
"""Two numbers that are not both integers are equal within this share of the larger."""

LONGEST = 400
"""Characters of an expression that math-verify is asked about."""

PATIENCE_S = 2
"""Seconds that math-verify may take to read or compare; an answer that takes longer is not equal."""

_WILD = re.compile(
    r"\^\s*\{?\s*-?\d{5,}|\^\s*\{?\s*\(?-?\d+\s*\^|\^\{?[^{}^]{0,20}\^\{?[^{}^]{0,20}\^|\d{4,}\s*!|!\s*!|[)}]\s*\^\s*\{?\s*\d{3,}|\d{5000,}"
)
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*\(?\s*-?)(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?"
)


def same_expression(mine: str, right: str) -> bool:
    """Whether the two mean the same, in normal notation and without the marks of upright words; False if either is too long,
    or has numbers too large to compute.
    """
    if max(len(mine), len(right)) > LONGEST or _WILD.search(mine) or _WILD.search(right):
        return False
    wanted, given = _parsed(right), _parse(mine)
    if not wanted or not given:
        return False
    here, there = _value(given[0]), _value(wanted[0])
    if here and there:
        return _near_in_plane(here, there)
    return bool(verify(list(wanted), list(given), float_rounding=12, timeout_seconds=_patience()))


def near(one: Fraction, other: Fraction) -> bool:
    """Whether two numbers differ by one part in a million at most; an integer and another by one in a thousand million."""
    share = CLOSE if one.denominator != 1 and other.denominator != 1 else CLOSE / 1000
    return abs(one - other) <= share * max(abs(one), abs(other))


def _near_in_plane(one: tuple[Fraction, Fraction], other: tuple[Fraction, Fraction]) -> bool:
    if not one[1] and not other[1]:
        return near(one[0], other[0])
    gap, size = ((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2), max(a * a + b * b for a, b in (one, other))
    return gap <= CLOSE**2 * size


@lru_cache(4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """Reference answers, parsed once: each is compared many times."""
    return _parse(text)


def _parse(text: str) -> tuple[Any, ...]:
    """What math-verify reads. It leaves a degree sign out, so degrees are turned into radians where a function takes them."""
    in_radians = _DEGREES.sub(r"\1\\frac{\2\\pi}{180}", text)
    return tuple(parse(f"\\boxed{{{in_radians}}}", parsing_timeout=_patience()))


def _patience() -> int | None:
    """math-verify limits its time by a signal, which only the main thread can receive."""
    return PATIENCE_S if threading.current_thread() is threading.main_thread() else None


def _value(expression: Any) -> tuple[Fraction, Fraction] | None:
    """The real and the imaginary part of an expression without variables, to 30 digits; None if it has none."""
    if {str(letter) for letter in getattr(expression, "free_symbols", ())} == {"i"}:
        expression = expression.subs(dict.fromkeys(expression.free_symbols, I))
    if not getattr(expression, "is_number", False) or not expression.is_complex or expression.is_infinite:
        return None
    try:
        parts = (expression, S.Zero) if expression.is_real else expression.evalf(30).as_real_imag()
        real, imaginary = (Fraction(str(part.evalf(30))) for part in parts)
    except (ValueError, TypeError, OverflowError, ArithmeticError):  # sympy could not reduce it to digits
        return None
    return real, imaginary
