"""Normalizes answers: one notation, and numbers with their units. Expressions are left to math-verify.

Nothing that distinguishes two answers is removed. A unit, a currency or a percent sign stays beside its number.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "⁄": "/", "∕": "/", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt", "±": r"\pm ", "∓": r"\mp ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "λ": r"\lambda ", "°": r"^\circ ", "º": r"^\circ ", "٪": "%", "٫": ".", "٬": ",", "、": ",",
    "\u200b": "", "\ufeff": "", "“": '"', "”": '"', "’": "'", "′": "'", "ℝ": r"\mathbb{R}", "µ": "μ", "¢": " cents",
}  # fmt: skip
_ROMAN = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|mathit|mathsf|operatorname|rm|bf)\*?\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[;:> ]|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])|\\hspace\*?\{[^{}]*\}|\\phantom\{[^{}]*\}|~")
_DROPPED = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|boldsymbol|rm|bf)(?![a-zA-Z])"
)
_WRAPPED = (("**", "**"), ("__", "__"), ("`", "`"), ("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"))
_CURRENCIES = {
    "$": "dollar", r"\$": "dollar", "us$": "dollar", "usd": "dollar", "€": "euro", r"\euro": "euro", "eur": "euro",
    "£": "pound sterling", r"\pounds": "pound sterling", "gbp": "pound sterling", "¥": "yen", r"\yen": "yen",
    "jpy": "yen", "cny": "yuan",
    "rmb": "yuan", "₹": "rupee", "rs": "rupee", "rs.": "rupee", "inr": "rupee", "₽": "ruble", "₩": "won",
    "₿": "bitcoin", "chf": "franc", "₺": "lira",
    "r$": "real", "a$": "dollar", "c$": "dollar",
}  # fmt: skip
_UNITS = {
    "mm": "millimeter", "cm": "centimeter", "dm": "decimeter", "m": "meter", "km": "kilometer", "nm": "nanometer",
    "μm": "micrometer", "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile",
    "mg": "milligram", "g": "gram", "kg": "kilogram", "t": "ton", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "s": "second", "sec": "second", "secs": "second", "ms": "millisecond", "min": "minute", "mins": "minute",
    "h": "hour",
    "hr": "hour", "hrs": "hour", "d": "day", "wk": "week", "yr": "year", "yrs": "year", "mph": "mile/hour",
    "kph": "kilometer/hour", "kmh": "kilometer/hour", "km/h": "kilometer/hour", "ml": "milliliter", "mL": "milliliter",
    "l": "liter", "L": "liter", "litre": "liter", "litres": "liter", "metre": "meter", "metres": "meter",
    "gal": "gallon",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt",
    "kW": "kilowatt", "kWh": "kilowatthour", "V": "volt", "A": "ampere", "Ω": "ohm", "Pa": "pascal",
    "kPa": "kilopascal",
    "mol": "mole", "K": "kelvin", "C": "celsius", "F": "fahrenheit", "rad": "radian", "deg": "degree",
    "degrees": "degree",
    "cal": "calorie", "kcal": "kilocalorie", "eV": "electronvolt", "B": "byte", "KB": "kilobyte",
    "MB": "megabyte", "GB": "gigabyte", "units": "unit", "th": "ordinal", "st": "ordinal", "nd": "ordinal", "rd": "ordinal",
    "sq": "square", "cubed": "cubic", "squared": "square",
    "pct": "percent", "ppm": "ppm", "T": "tesla",
}  # fmt: skip
_NO_UNIT = frozenset(re.findall(r"\w+", """
    and or to from minus plus times over not no maybe but than then if is are am pm dozen hundred thousand million billion
    trillion half quarter third sin cos tan cot csc log ln exp sqrt pi mod choose factorial base infinity infinite solutions
    remainder power even odd nor vs versus through until between either"""))  # fmt: skip
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS = 4000
"""The most digits of a number; a longer one is treated as text."""


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
    text = re.sub(r"\\sqrt\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(?:deg(?:ree)?|textdegree)(?![a-zA-Z])", r"^\\circ ", text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}", r"^\\circ ", text).replace("^^\\circ", "^\\circ")
    text = re.sub(r"\\(?:le|leqslant)(?![a-zA-Z])", r"\\leq", text)
    text = re.sub(r"\\(?:ge|geqslant)(?![a-zA-Z])", r"\\geq", text)
    text = re.sub(r"\\(?:ne)(?![a-zA-Z])", r"\\neq", text)
    text = re.sub(r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset", text)
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


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts.

    Attributes:
        unit: in one spelling, or None.
        whole: it is written as an integer, and so it is exact.
    """

    value: Fraction
    unit: str | None
    whole: bool


_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)"
_GROUPED = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"
_SPACED = r"\d{1,3}(?: \d{3})+(?:\.\d+)?"
_POWER = r"(?:\s*(?:\\times|\\cdot|[x*])\s*10\s*\^\s*\{?\s*(?P<ten>[-+]?\d+)\s*\}?|[eE](?P<e>[-+]?\d+))?"
_DECIMAL = re.compile(rf"(?P<number>{_SPACED}|{_GROUPED}|{_PLAIN}){_POWER}")
_MIXED = re.compile(
    r"(?P<whole>\d+)\s*(?:⟨?\s*and\s*⟩?\s*|[+]\s*)?(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(?<=[\s⟩])(\d+)\s*/\s*(\d+))"
)
_RATIO = re.compile(
    rf"(?:\\frac\s*\{{\s*(?P<s>[-+]?)\s*({_PLAIN}|{_GROUPED})\s*\}}\s*\{{\s*({_PLAIN}|{_GROUPED})\s*\}}|({_PLAIN}|{_GROUPED})\s*/\s*({_PLAIN}|{_GROUPED}))"
)
_TEN = re.compile(r"10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
_REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<once>\d*)\\(?:overline|bar)\s*\{(?P<again>\d+)\}")
_SIGN = re.compile(r"\s*([-+]?)\s*")
_UNIT_TOKEN = re.compile(r"\^?\\circ|°|\\%|%|\^\s*\{?\s*-?\d\s*\}?|/|\*|\\cdot|[A-Za-zμΩ]+(?:-[A-Za-z]+)*\.?|[$€£¥₹]|\\\$|\S")


def quantity(text: str, thousands: bool) -> Quantity | None:
    """The number, with or without a unit, that a text in normal notation states; None if it states none.

    `thousands`: a comma before three digits may separate thousands where nothing else decides; else `300,500` is two numbers.
    """
    currency, rest = _currency(text)
    sign = _SIGN.match(rest)
    assert sign
    body, factor = rest[sign.end() :], -1 if sign[1] == "-" else 1
    if currency is None:
        currency, body = _currency(body)
    number = _number(body)
    if number is None:
        return None
    value, whole, grouped, end = number
    tail = body[end:]
    scale = re.match(r"\s*⟨?\s*(dozen|hundred|thousand|million|billion|trillion)s?\b(.*)", tail, re.IGNORECASE)
    if scale:
        value, tail = value * _SCALES[scale[1].lower()], scale[2].removeprefix("⟩")
    unit = _unit(tail)
    if unit is None or (currency and unit and unit not in (currency, "dollar") and not unit.startswith("/")):
        return None
    unit = f"{currency}{unit if unit.startswith('/') else ''}" if currency else unit or None
    if grouped and not (thousands or unit or scale or re.search(r",0", body[:end]) or "." in body[:end]):
        return None
    return Quantity(factor * value, unit, whole and value.denominator == 1)


def _currency(text: str) -> tuple[str | None, str]:
    found = re.match(
        r"\s*⟨?\s*(\\\$|US\$|A\$|C\$|R\$|\$|€|£|¥|₹|₽|₩|₿|₺|\\pounds|\\euro|\\yen|(?:USD|EUR|GBP|INR|JPY|CHF|CNY|RMB|Rs\.?)(?=[\s\d⟩]))\s*⟩?\s*",
        text,
    )
    if not found or not re.match(r"[-+]?\s*[\d.]", text[found.end() :]):
        return None, text
    return _CURRENCIES[found[1].lower()], text[found.end() :]


def _number(text: str) -> tuple[Fraction, bool, bool, int] | None:
    """Value, whether written as an integer, whether commas group it, and where it ends; of a text that begins with a number."""
    if found := _MIXED.match(text):
        above, below = [int(part) for part in found.groups()[1:] if part]
        if 0 < above < below:
            return Fraction(int(found["whole"])) + Fraction(above, below), False, False, found.end()
    if found := _RATIO.match(text):
        above_text, below_text = [part.replace(",", "") for part in found.groups()[1:] if part]
        below_value = Fraction(below_text)
        if below_value and not re.match(r"\s*[/^]", text[found.end() :]):
            minus = -1 if found["s"] == "-" else 1
            return minus * Fraction(above_text) / below_value, False, False, found.end()
        return None
    if found := _REPEATING.match(text):
        once, again = found["once"], found["again"]
        tail = Fraction(int(again), 10 ** len(again) - 1) / 10 ** len(once)
        return Fraction(found["whole"] or 0) + Fraction(int(once or 0), 10 ** len(once)) + tail, False, False, found.end()
    if (found := _TEN.match(text)) and abs(int(found[1])) <= _DIGITS:
        return Fraction(10) ** int(found[1]), not found[1].startswith("-"), False, found.end()
    found = _DECIMAL.match(text)
    if not found or len(found[0]) > _DIGITS:
        return None
    exponent = int(found["ten"] or found["e"] or 0) if len(found["ten"] or found["e"] or "") < 6 else _DIGITS + 1
    if abs(exponent) > _DIGITS:
        return None
    written = found["number"]
    value = Fraction(written.replace(",", "").replace(" ", "").rstrip(".")) * Fraction(10) ** exponent
    return value, "." not in written.rstrip(".") and not exponent, "," in written, found.end()


@lru_cache(4096)
def _unit(tail: str) -> str | None:
    """What follows a number as a unit in one spelling, empty where nothing follows; None: it is something else."""
    upright, spaced = "⟨" in tail, tail[:1].isspace()
    plain = unmarked(tail)
    if not plain:
        return ""
    words, named = list[str](), 0
    for token in _UNIT_TOKEN.findall(plain):
        word = token.rstrip(".")
        if token in (r"^\circ", r"\circ", "°"):
            words.append("degree")
        elif token in (r"\%", "%"):
            words.append("percent")
        elif token in ("/", "*", r"\cdot") or word == "per":
            words.append("/" if token in ("/",) or word == "per" else "")
        elif token.startswith("^"):
            words.append("^" + re.sub(r"[^-\d]", "", token))
        elif word.lower() in _CURRENCIES or token in _CURRENCIES:
            words.append(_CURRENCIES.get(word.lower()) or _CURRENCIES[token])
        elif word in _UNITS or word.lower() in _UNITS:
            if len(word) == 1 and not (upright or spaced or words):
                return None
            words.append(_UNITS.get(word) or _UNITS[word.lower()])
        elif re.fullmatch(r"[A-Za-z]{3,}(-[A-Za-z]+)*", word) and word.lower() not in _NO_UNIT and (upright or spaced or words):
            words.append(_singular(word.lower()))
            named += 1
        elif word.lower() in ("of", "a", "an", "the"):
            continue
        else:
            return None
        if named > 4:
            return None
    return _spelled(words)


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word.removesuffix("es") if word.endswith(("ches", "shes", "xes", "sses")) else word.removesuffix("s")


def _spelled(words: list[str]) -> str:
    """`square meter`, `meter ^2` and `meter^2` alike."""
    text = " ".join(word for word in words if word)
    text = re.sub(r"\b(square|cubic) ([a-z]+)", lambda found: f"{found[2]}^{2 if found[1] == 'square' else 3}", text)
    text = re.sub(r"\b([a-z]+) (square|cubic)\b", lambda found: f"{found[1]}^{2 if found[2] == 'square' else 3}", text)
    return re.sub(r"\s*([/^])\s*", r"\1", text).strip()
