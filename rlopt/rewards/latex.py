"""Where a solution in LaTeX gives its final answer."""

import re

_MARK = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[^\S\n]*|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"(?:(?!\\(?:boxed|fbox))[^$\n])*")


def boxes(text: str) -> list[str]:
    """What every `\\boxed{...}` and `\\fbox{...}` of `text` holds, its braces counted, in the order in which they begin.

    `\\boxed 2` holds what comes before a `$` or the end of the line. A box that is never closed does not count, and one around
    another does not count beside it. One pass over the text.
    """
    return [held for held in _scan(text) if held is not None]


def last_box(text: str) -> tuple[bool, str | None]:
    """Whether `text` begins a box at all, and what its last one holds; None where that is never closed."""
    found = _scan(text)
    return bool(found), found[-1] if found else None


def _scan(text: str) -> list[str | None]:
    """Every innermost box in the order in which they begin; None: never closed."""
    found: list[str | None] = []
    depth, outside, start = 0, 0, -1  # `start` is where the box that was begun last holds something, -1 once it is closed
    for mark in _MARK.finditer(text):
        sign, at = mark[0], mark.end()
        if sign.startswith(("\\boxed", "\\fbox")):
            braced = text.startswith("{", at)
            if start >= 0:
                found.pop()  # it is around this one
            start = -1
            if braced:
                found.append(None)
                start, outside = at + 1, depth
            elif bare := _BARE.match(text, at)[0].strip().rstrip("."):  # type: ignore[index]
                found.append(bare)
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if start >= 0 and depth == outside:
                found[-1] = text[start : mark.start()]
                start = -1
    return found
