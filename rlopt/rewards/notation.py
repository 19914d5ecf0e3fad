"""Normalizes answers: one notation for what can be written in several. `quantities` reads what is a number with a unit.

Nothing that distinguishes two answers is removed.
"""

import re
import unicodedata
from functools import cache

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "⁄": "/", "∕": "/", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt", "∛": r"\sqrt[3]", "±": r"\pm ", "∓": r"\mp ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "λ": r"\lambda ", "°": r"^\circ ", "º": r"^\circ ", "٪": "%", "٫": ".", "٬": ",", "、": ",", "。": ".",
    "\u200b": "", "\ufeff": "", "“": '"', "”": '"', "’": "'", "′": "'", "ℝ": r"\mathbb{R}", "µ": "μ", "¢": " cents",
    "⟨": "(", "⟩": ")", "〈": "(", "〉": ")",
}  # fmt: skip
_VECTOR = re.compile(r"\\(?:vec|hat|overrightarrow|mathbf|boldsymbol)\s*\{?\s*\\?([ijk])(?:math)?(?![a-zA-Z])\s*\}?")
_ROMAN = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|mathit|mathsf|operatorname|rm|bf)\*?\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[;:> ]|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])|\\hspace\*?\{[^{}]*\}|\\phantom\{[^{}]*\}|~")
_DROPPED = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|boldsymbol|rm|bf)(?![a-zA-Z])"
)
_WRAPPED = (("**", "**"), ("__", "__"), ("`", "`"), ("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"))


def normal(text: str) -> str:
    """`text` in one notation: Unicode as LaTeX or ASCII, fractions as `\\frac{}{}`, no spacing commands, no math delimiters, no
    emphasis. Words that LaTeX sets upright stand between `⟨` and `⟩`.
    """
    text = "".join(map(_character, _superscripts(text)))
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", "", text).replace(r"\!", "").replace("{,}", "").replace(r"\,", "\x00")
    text = re.sub(r"(?<=\d),(?=\x00?\d{3}(?!\d))\x00", "", text)
    text = re.sub(r"(?<=\d)\x00(?=\d{3}(?!\d))", "", text).replace("\x00", " ")
    text = _DROPPED.sub("", _SPACES.sub(" ", text))
    text = re.sub(r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d|[a-zA-Z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-zA-Z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\[\d+\])?\s*(\d+|[a-zA-Z])", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\(?:deg(?:ree)?|textdegree)(?![a-zA-Z])", r"^\\circ ", text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}", r"^\\circ ", text).replace("^^\\circ", "^\\circ")
    text = re.sub(r"\\(?:le|leqslant)(?![a-zA-Z])", r"\\leq", text)
    text = re.sub(r"\\(?:ge|geqslant)(?![a-zA-Z])", r"\\geq", text)
    text = re.sub(r"\\(?:ne)(?![a-zA-Z])", r"\\neq", text)
    text = re.sub(r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset", text)
    text = re.sub(r"\\langle(?![a-zA-Z])", "(", text)
    text = re.sub(r"\\rangle(?![a-zA-Z])", ")", text)
    text = re.sub(r"\\(?:mathbb|Bbb)\s*(?:R|\{\s*R\s*\})|\\R(?:eals)?(?![a-zA-Z])", r"\\mathbb{R}", text)
    text = re.sub(r"\{\s*([^{}\s]{1,20})\s*\\choose\s+([^{}\s]{1,20})\s*\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\\log\s*_\s*(?:e(?![a-zA-Z])|\{\s*e\s*\})", r"\\ln ", text)
    text = re.sub(r"(\.\d*?)(\d{1,6}?)\2{2,}\s*(?:\.{3}|…|\\l?dots(?![a-zA-Z]))", r"\1\\overline{\2}", text)
    text = _VECTOR.sub(r"⟨\1⟩", text)
    for _ in range(3):
        text = _ROMAN.sub(r"⟨\1⟩", text)
    return _bare(re.sub(r"\s+", " ", text))


def _superscripts(text: str) -> str:
    run = "".join(_SUPERSCRIPTS)
    text = re.sub(f"[{run}]+", lambda found: "^{" + "".join(_SUPERSCRIPTS[c] for c in found[0]) + "}", text)
    return re.sub(f"[{''.join(_SUBSCRIPTS)}]+", lambda found: "_{" + "".join(_SUBSCRIPTS[c] for c in found[0]) + "}", text)


@cache
def _character(sign: str) -> str:
    if sign.isascii():
        return sign
    if sign in _SIGNS:
        return _SIGNS[sign]
    if (digit := unicodedata.decimal(sign, None)) is not None:
        return str(digit)
    if unicodedata.decomposition(sign).startswith("<fraction>"):
        above, _, below = unicodedata.normalize("NFKC", sign).partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}"
    wide = unicodedata.normalize("NFKC", sign)  # of letters, signs and spaces that are wider or narrower
    return wide if wide.isascii() and len(wide) == 1 else sign


def _bare(text: str) -> str:
    """Without spaces, delimiters, emphasis and the full stop around an answer."""
    while True:
        before = text
        text = text.strip().removesuffix("\\\\").rstrip(".;:, ")
        for opens, closes in _WRAPPED:
            if text.startswith(opens) and text.endswith(closes) and len(text) >= len(opens) + len(closes):
                text = text[len(opens) : len(text) - len(closes)]
        if re.fullmatch(r"\$[^$]+\$", text) and not text.endswith(r"\$"):
            text = text[1:-1]
        if text.startswith("{") and _closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        text = text.lstrip("*").rstrip("*") if text.count("*") in (1, 2) and text.strip("*") == text.replace("*", "") else text
        if text == before:
            return text


def _closing(text: str, at: int) -> int:
    """Where the bracket that opens at `at` is closed, or -1."""
    pairs, depth = {"(": ")", "[": "]", "{": "}"}, 0
    for place in range(at, len(text)):
        depth += (text[place] in pairs) - (text[place] in pairs.values())
        if not depth:
            return place
    return -1


def unmarked(text: str) -> str:
    """Without the marks of upright words."""
    return re.sub(r"\s+", " ", text.replace("⟨", " ").replace("⟩", " ")).strip()
