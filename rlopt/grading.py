"""Reward functions that most runs begin with. Any of them is a `reward.fn`, alone or with others: `rlopt.grading:mathematics`.

Right answers of mathematics are told by math-verify (Hugging Face), which reads LaTeX and plain expressions and compares what
they mean: `1/2`, `0.5` and `\\frac{1}{2}` are one answer. Here is only what says where the final answer stands.
"""

import logging
import re
from functools import cache
from typing import Any

from math_verify import parse, verify

from rlopt import latex

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no deadline; our caller has one

_WORDS = re.compile(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}(\^\{?\d\}?)?")
_UNIT = re.compile(r"(?<=[\d}])[\s~]*\\(?:text|mbox|mathrm)\s*\{\s*(?![ie]\s*\})[^{}]*\}(\^\{?\d\}?)?\s*\.?$")
_AROUND = re.compile(r"(?<!\\)\\[!,;: ]|\\%|%|\\\$|\$|°|\^\\circ|\^\{\\circ\}")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


def mathematics(completion: str, answer: str, **columns: object) -> float:
    """1.0 where the final answer of `completion` means the same as `answer`, else 0.0.

    The final answer is what the last `\\boxed{}` holds, else what follows the last `####`, else the last that math-verify
    finds. Units, currency, percent signs and separators of thousands are looked past.

    Raises:
        ValueError: `answer` is empty.
    """
    if not answer.strip():
        raise ValueError("the answer is empty, so nothing can be right")
    said = _final(completion)
    if said is not None and _plain(said).replace(" ", "") == _plain(answer).replace(" ", ""):
        return 1.0
    wanted = _parsed(f"\\boxed{{{_plain(answer)}}}")
    given = _read(f"\\boxed{{{_plain(said)}}}" if said is not None else completion)
    return float(verify(wanted, given, timeout_seconds=None))


def exact(completion: str, answer: str, **columns: object) -> float:
    """1.0 where `completion` is `answer`, but for spaces around it."""
    return float(completion.strip() == answer.strip())


def boxed(completion: str, **columns: object) -> float:
    """1.0 where `completion` gives its final answer in `\\boxed{}` exactly once: a reward for the format alone."""
    return float(len(latex.boxes(completion)) == 1)


def brevity(completion: str, **columns: object) -> float:
    """1 for nothing, 1/2 for 1,000 characters, falling to 0: for a small weight beside another reward."""
    return 1000 / (1000 + len(completion))


def _final(completion: str) -> str | None:
    if found := latex.boxes(completion):
        return found[-1]
    if "####" in completion:
        return completion.rpartition("####")[2].strip().split("\n")[0]
    return None


def _plain(text: str) -> str:
    """Without the unit at its end, currency, percent, and separators of thousands of a lone number. Other words stay."""
    text = _UNIT.sub("", text.strip())
    text = _WORDS.sub(lambda found: "," if found[1].strip() in ("and", "or") else found[1] + (found[2] or ""), text)
    text = _AROUND.sub("", text.replace("{,}", ",")).strip().rstrip(".")
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


@cache
def _parsed(text: str) -> Any:
    """Of right answers, which come again and again."""
    return _read(text)


def _read(text: str) -> Any:
    return parse(text, parsing_timeout=None)
