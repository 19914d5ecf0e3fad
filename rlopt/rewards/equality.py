"""Whether the answer of a solution equals the reference answer, both normalized by `notation`.

Numbers are equal where they differ by one part in a million at most, integers exactly; units and currencies must agree where
both have one. Lists are compared item by item: in any order, but between brackets. Inequalities of a variable are the intervals
that they describe. All else is an expression (`expressions`).
"""

import re
from collections.abc import Sequence
from typing import Any

from rlopt.rewards.expressions import near, same_expression
from rlopt.rewards.notation import normal, unmarked
from rlopt.rewards.quantities import Quantity, quantity

READABLE = 2000
"""Characters of an answer that is read at all."""

_OPEN, _CLOSED = {"(": ")", "[": "]", "\\{": "\\}"}, (")", "]", "\\}")
_JOINT = re.compile(r"\s*,?\s*(?:⟨\s*)?\b(?:and|or)\b(?:\s*⟩)?\s*,?\s*", re.IGNORECASE)
_JOINT_UPRIGHT = re.compile(r"\s*,?\s*⟨\s*,?\s*(?:and|or)\s*⟩\s*,?\s*", re.IGNORECASE)
_NAME = re.compile(r"^(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z](?:,\s*[a-z])*\))?|\\angle\s*[A-Z]+|[A-Z]{2,3})'*$")
_OPTION = re.compile(r"^\(?\s*⟨?\s*\(?([A-J])\)?\s*⟩?\s*(?:\)|$|[.:)](?=\s|⟨|$)|\s*-\s)")
_BASE = re.compile(r"^([0-9A-Fa-f]+)\s*_\s*\{?\s*(?:⟨\s*)?([a-z]+|\d+)(?:\s*⟩)?\s*\}?$")
_CLOCK = re.compile(r"^(\d{1,2})(?:[:.](\d{2}))?\s*⟨?\s*(?:([ap])\.?\s*m\.?)?\s*⟩?$", re.IGNORECASE)
_RATIO = re.compile(r"^\d{1,9}(?:\s*(?::|⟨?\s*to\s*⟩?)\s*\d{1,9}){1,9}$")
_LESS_OR_MORE = re.compile(r"(<=|>=|<|>|\\[lg]eq?(?:slant)?(?![a-z])|\\[lg]t(?![a-z]))")
_VARIABLE = re.compile(r"[a-zA-Z]|\\(?!infty)[a-z]+")
_SETS = {
    **dict.fromkeys(("\\mathbb{R}", "allrealnumbers", "allreals"), "(-\\infty,\\infty)"),
    **dict.fromkeys(("nosolution", "nosolutions", "norealsolution", "norealsolutions"), "\\emptyset"),
}
"""Sets that have a name, by what `_squashed` makes of it."""
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def equal(said: str, answer: str) -> bool:
    """Whether `said`, as a solution writes it, means the right `answer`.

    In `answer` a comma before three digits separates two numbers unless something shows that it separates thousands: a zero
    after it, a unit, a currency. In `said` it is read as `answer` needs it.
    """
    if max(len(said), len(answer)) > READABLE:
        return said.strip() == answer.strip()
    mine, right = normal(said), normal(answer)
    if not mine or not right:
        return False
    option = _OPTION.match(right)
    if option and (len(_squashed(right)) <= 3 or re.match(r"^\(?[A-J][.)]", right)):
        chosen = _OPTION.match(mine)
        return bool(chosen and chosen[1] == option[1]) or _squashed(mine) == _squashed(right)
    return _same(mine, right)


def _same(mine: str, right: str) -> bool:
    if _squashed(mine) == _squashed(right):
        return True
    mine, right = (_SETS.get(_squashed(text), text) for text in (mine, right))
    if (named := _named(mine)) and not _named(right):
        return _same(named, right)
    if (named := _named(right)) and "=" not in mine:
        return _same(mine, named)
    bases = _BASE.match(mine), _BASE.match(right)
    if any(bases):
        return _same_in_base(mine, right)
    clocks = _CLOCK.match(mine), _CLOCK.match(right)
    if all(clocks) and any(clock and (clock[2] or clock[3]) for clock in clocks):
        return _same_time(clocks[0], clocks[1])
    ratios = _RATIO.match(mine), _RATIO.match(right)
    if all(ratios) and ":" in mine + right:
        return _same_proportions(mine, right)
    ranges = _ranges(mine), _ranges(right)
    if any(ranges) and not all(ranges):
        return _same(ranges[0] or mine, ranges[1] or right)
    here, there = quantity(mine, thousands=True), quantity(right, thousands=False)
    if here and there:
        return _close(here, there)
    if (verdict := _same_items(mine, right)) is not None:
        return verdict
    if (verdict := _same_sides(mine, right)) is not None:
        return verdict
    if (here or there) and _is_text(right if here else mine):
        return False
    return same_expression(_in_radians(mine, here, right), _in_radians(right, there, mine))


def _in_radians(text: str, read: Quantity | None, other: str) -> str:
    """For math-verify: unmarked, and an angle in degrees in radians where it is compared with a multiple of pi."""
    if read and read.unit == "degree" and "\\pi" in other:
        return f"\\frac{{{read.value.numerator}\\pi}}{{{180 * read.value.denominator}}}"
    return unmarked(text)


def _squashed(text: str) -> str:
    """For a comparison as it is written: without spaces, upright marks, and the case of words."""
    plain = re.sub(r"[⟨⟩\s]", "", text)
    return plain.casefold() if re.fullmatch(r"[^\W\d_]{2,}.*", plain) and "\\" not in plain else plain


def _close(here: Quantity, there: Quantity) -> bool:
    values = [here.value, *([here.value / 100] if here.unit == "percent" and there.unit is None else [])]
    goals = [there.value, *([there.value / 100] if there.unit == "percent" and here.unit is None else [])]
    if here.unit and there.unit and not (here.unit.startswith(there.unit) or there.unit.startswith(here.unit)):
        return False
    if here.whole and there.whole and len(values) == len(goals) == 1:
        return here.value == there.value
    return any(near(value, goal) for value in values for goal in goals)


def _same_in_base(mine: str, right: str) -> bool:
    (digits, base), (wanted, wanted_base) = (_in_base(text) for text in (mine, right))
    return digits == wanted and (base == wanted_base or not base or not wanted_base)


def _in_base(text: str) -> tuple[str, str]:
    found = _BASE.match(text)
    return (found[1].upper(), _BASES.get(found[2], found[2])) if found else (_squashed(text).upper(), "")


def _same_time(mine: Any, right: Any) -> bool:
    def minutes(clock: Any) -> int:
        return int(clock[1]) % (12 if clock[3] else 24) * 60 + int(clock[2] or 0) + 720 * ((clock[3] or "a").lower() == "p")

    if right[3] and not mine[3]:
        return int(mine[1]) > 12 and minutes(mine) == minutes(right)
    if mine[3] and not right[3]:
        as_written = (int(mine[1]), int(mine[2] or 0)) == (int(right[1]), int(right[2] or 0))
        return as_written or minutes(mine) == minutes(right)
    return minutes(mine) == minutes(right)


def _same_proportions(mine: str, right: str) -> bool:
    terms, wanted = (list(map(int, re.findall(r"\d+", text))) for text in (mine, right))
    if len(terms) != len(wanted) or not any(terms) or not any(wanted):
        return terms == wanted
    return all(a * sum(wanted) == b * sum(terms) for a, b in zip(terms, wanted, strict=True))


def _ranges(text: str) -> str | None:
    """`1 < x \\leq 2` as the interval that it describes, and several joined by "or" as their union; None for anything else."""
    if not _LESS_OR_MORE.search(text) or re.search(r"\band\b", text):
        return None
    intervals = [_interval(item) for item in _items(text)]
    return "\\cup ".join(one for one in intervals if one) if all(intervals) else None


def _interval(text: str) -> str | None:
    parts = [part.strip() for part in _LESS_OR_MORE.split(text)]
    sides, signs = parts[::2], parts[1::2]
    falls = {sign.lstrip("\\")[0] in "g>" for sign in signs}
    if len(falls) != 1 or len(sides) > 3:
        return None
    if falls.pop():
        sides, signs = sides[::-1], signs[::-1]
    closed = ["e" in sign or "=" in sign for sign in signs]
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
        sides, closed = ["-\\infty", *sides], [False, *closed]
    elif len(sides) == 2:
        sides, closed = [*sides, "\\infty"], [*closed, False]
    low, name, high = sides
    if not (low and high and _VARIABLE.fullmatch(name)):
        return None
    return f"{'[' if closed[0] else '('}{low},{high}{']' if closed[1] else ')'}"


def _same_items(mine: str, right: str) -> bool | None:
    """Lists, sets, tuples, intervals and unions by what they hold; None if `right` or `mine` is not one of these."""
    unions = mine.split("\\cup"), right.split("\\cup")
    if min(map(len, unions)) > 1:
        return _same_in_any_order([part.strip() for part in unions[0]], [part.strip() for part in unions[1]])
    (opens, inside, closes), (opens_right, inside_right, closes_right) = _within(mine), _within(right)
    items, wanted = _items(inside), _items(inside_right)
    if max(len(items), len(wanted)) == 1 and not (opens and opens_right):
        return None
    bare = "\\{" in (opens, opens_right) or not (opens and opens_right)
    if bare and {opens, opens_right} <= {"", "\\{"}:
        return _same_in_any_order(items, wanted)
    if (opens, closes) != (opens_right, closes_right) and opens and opens_right:
        return False
    return len(items) == len(wanted) and all(_same(a, b) for a, b in zip(items, wanted, strict=True))


def _within(text: str) -> tuple[str, str, str]:
    """The bracket that opens a text, what is in it, and the bracket that closes it; empty brackets where there are none."""
    for opens in _OPEN:
        for closes in _CLOSED:
            if text.startswith(opens) and text.endswith(closes) and _matches(text, len(opens), len(text) - len(closes)):
                return opens, text[len(opens) : len(text) - len(closes)].strip(), closes
    return "", text, ""


def _matches(text: str, start: int, end: int) -> bool:
    """Whether the brackets between `start` and `end` are closed there."""
    depth = 0
    for sign in text[start:end]:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _items(text: str) -> list[str]:
    """What commas, semicolons, "and" and "or" separate outside of brackets; a lone number with thousands is one item."""
    text = _JOINT_UPRIGHT.sub(",", text)
    text = _JOINT.sub(",", text) if not re.search(r"[A-Za-z]{3,} (?:and|or) [A-Za-z]{3,}", text) else text
    text = re.sub(r"⟨([^⟨⟩]*)⟩", lambda found: "⟨" + _JOINT.sub("⟩,⟨", found[1]) + "⟩", text).replace("⟨⟩", "")
    items, depth, start = list[str](), 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign in ",;" and not depth:
            items.append(text[start:place])
            start = place + 1
    return [one for item in [*items, text[start:]] if item.strip() for one in _both_signs(item.strip())]


def _both_signs(item: str) -> list[str]:
    """`1 \\pm 2` as its two values."""
    before, sign, after = item.partition("\\pm")
    if not sign or "\\pm" in after or "\\mp" in item:
        return [item]
    return [f"{before.strip()} + {after.strip()}" if before.strip() else after.strip(), f"{before}-{after.strip()}"]


def _same_in_any_order(mine: Sequence[str], right: Sequence[str]) -> bool:
    left = list(right)
    if len(mine) != len(left) or len(mine) > 50:
        return False
    for item in mine:
        found = next((other for other in left if _same(item, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_sides(mine: str, right: str) -> bool | None:
    """Equations by their sides; None if there is no equation."""
    sides, wanted = _sides(mine), _sides(right)
    if len(sides) == len(wanted) == 1:
        return None
    if len(sides) > 1 and len(wanted) > 1:
        if len(sides) == len(wanted) and all(_same(a, b) for a, b in zip(sides, wanted, strict=True)):
            return True
        return len(sides) == len(wanted) == 2 and same_expression(unmarked(mine), unmarked(right))
    return len(sides) > 1 and _same(sides[-1], right)  # 48 + 24 = 72: what it comes to


def _named(text: str) -> str | None:
    """What `x = 3`, `f(x) = 3` and `x \\in 3` name, if it is one thing."""
    sides = _sides(text)
    return sides[1] if len(sides) == 2 and _NAME.match(sides[0]) else None


def _sides(text: str) -> list[str]:
    sides, start = list[str](), 0
    for sign in re.finditer(r"(?<![<>!:\\])=|\\in(?![a-z])", text):
        if text.count("{", start, sign.start()) == text.count("}", start, sign.start()):  # not the one of \sum_{i=1}
            sides.append(text[start : sign.start()])
            start = sign.end()
    return [side.strip() for side in [*sides, text[start:]] if side.strip()]


def _is_text(text: str) -> bool:
    """Whether a text is words: letters beside which no mathematics stands."""
    return bool(re.search(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+|\bd[a-z]\b", "", text)))  # an integral's dx is none
