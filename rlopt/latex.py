"""Where a solution in LaTeX gives its final answer."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


def boxes(text: str) -> list[str]:
    """What every `\\boxed{...}` and `\\fbox{...}` of `text` holds, its braces counted; one that is never closed is none.

    `\\boxed 2` holds what comes before a `$` or the end of the line.
    """
    found = []
    for box in _BOX.finditer(text):
        start = box.end()
        if text[start : start + 1] != "{":
            bare = re.split(r"[$\n]", text[start:], maxsplit=1)[0].strip().rstrip(".")
            found += [bare] if bare else []
            continue
        depth = 0
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                found.append(text[start + 1 : at])
                break
    return found
