"""Finds the final answer of a solution. `notation` normalizes it, `equality` compares it.

In this order; the first that is present decides:

1. what is thought is cut off: `<think>...</think>` and its like. A block that never ends leaves nothing after its beginning,
   an end without a beginning nothing before it. Of what is left, the last `<answer>...</answer>` is all, if there is one.
2. `\\boxed{}` or `\\fbox{}`: the last. One that is begun after it and never closed withdraws it: then there is no answer.
3. `#### 72`, as GSM8K has it: the last that holds a number, or stands at the end. Other lines with `####` are headings.
4. "the answer is X", "Answer: X", "**Final answer:** X", or the same in eight other languages: the last.
5. the whole text, where it is one short line and no sentence around a number; else its bold words, where they end it.
6. the last number of the last line that has one, with a word such as `million` behind it.
"""

import re
from typing import Literal

from rlopt.rewards import latex
from rlopt.rewards.quantities import SCALE, UNSPACED

Strictness = Literal["anywhere", "marked", "boxed"]
"""How an answer must be given: by any of these, by 2 to 4, or only in a box."""

_THOUGHT = r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis"
_OPENS = rf"<(?:{_THOUGHT})>|<\|begin_of_thought\|>|<\|channel\|>analysis(?:<\|message\|>)?|◁think▷|\[THINK\]"
_CLOSES = rf"</(?:{_THOUGHT})>|<\|end_of_thought\|>|<\|channel\|>final(?:<\|message\|>)?|◁/think▷|\[/THINK\]"
_BORDER = re.compile(f"(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_COLON = "[:\uff1a]"
_LABEL = re.compile(
    r"(?:\b(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)(?:\s+to\s+[^.:\n]{1,80}?)?"
    r"[*_]*\s*(?:is\s*:?|are\s*:?|:|=|would\s+be|must\s+be)[*_]*|^\s*answer\s*[*_]*$"
    rf"|答案\s{{0,3}}[*_]{{0,3}}(?:应该|應該|就)?\s{{0,3}}(?:(?:是|为|為)\s{{0,3}}{_COLON}?|{_COLON}|=)[*_]{{0,3}}"
    rf"|答え?\s{{0,3}}[*_]{{0,3}}(?:は|{_COLON})[*_]{{0,3}}|정답\s{{0,3}}[*_]{{0,3}}(?:은|{_COLON})[*_]{{0,3}}"
    rf"|\b(?:ответ|réponse|respuesta|resposta|risposta|antwort)\s{{0,3}}[*_]{{0,3}}(?:{_COLON}|\s(?:es|est|é|è|ist|lautet)\s)[*_]{{0,3}})",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(rf"[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+|[eE][-+]?\d+)?(?:\s*(?:%|°)|\s*{SCALE})?", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+\s*[.):]\s+\D")
_INTRODUCED = re.compile(r"^(?:option|choice|equal to|therefore|thus|approximately|about)\s+(?=\S)", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*[\s.!]*\Z")
_PROSE = re.compile(rf"[^\W\d_]{{2,}}\s?[,:]?\s|{UNSPACED}")
"""How a sentence begins: with a word and a space, or in a script that has none between words."""
SHORT = 80
"""The most characters of a text that counts as an answer as a whole."""


def find(completion: str, strictness: Strictness = "anywhere") -> str | None:
    """The final answer as it is written in `completion`, or None."""
    text = spoken(completion)
    begun, box = latex.last_box(text)
    if begun or strictness == "boxed":
        return box
    if (hashes := _after_hashes(text)) is not None:
        return hashes
    if (labelled := _after_label(text)) is not None:
        return labelled
    if strictness == "marked":
        return None
    whole = text.strip()
    if len(whole) <= SHORT and "\n" not in whole and not (_PROSE.match(whole) and _NUMBER.search(whole)):
        return _INTRODUCED.sub("", whole) or None
    if bold := _BOLD.search(text):
        return bold[1]
    return next((found for line in reversed(text.splitlines()) if (found := _last_number(line))), None)


def spoken(completion: str) -> str:
    """`completion` without what is thought, and of that the last `<answer>`, if there is one."""
    kept, depth, start = list[str](), 0, 0
    for border in _BORDER.finditer(completion):
        if border["opens"]:
            if not depth:
                kept.append(completion[start : border.start()])
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()
        start = border.end()
    if not depth:
        kept.append(completion[start:])
    text = "".join(kept)
    return next(reversed(_ANSWER.findall(text)), text)


def _after_hashes(text: str) -> str | None:
    for mark in reversed([*_HASHES.finditer(text)]):
        held = mark[1].strip().rstrip("#").strip()
        if label := _LABEL.match(held):
            return held[label.end() :].strip() or None
        numeric = _NUMBER.match(held.lstrip("$€£¥₹\\*([{ ")) and not _NUMBERED.match(held)
        ends = not text[mark.end() :].strip()
        if held and (ends or (numeric and len(held) <= SHORT)):
            return held
    return None


def _after_label(text: str) -> str | None:
    for label in reversed([*_LABEL.finditer(text)]):
        line = text[label.end() :].lstrip(" \t\n").split("\n", 1)[0].strip()
        if line:
            return _sentence(line)
    return None


def _sentence(line: str) -> str:
    """A line up to the end of its first sentence, without what introduces it and a reason that follows."""
    end = r"(?<=[\w)}$%*])[.!](?=\s+[A-Z]|\s*\**\s*$)|。|,?\s+(?:because|since|so|as|which|where)\s"
    line = re.split(end, line, maxsplit=1)[0]
    return _INTRODUCED.sub("", line.strip())


def _last_number(line: str) -> str | None:
    return next((found[0].rstrip(",. ") for found in reversed([*_NUMBER.finditer(line)])), None)
