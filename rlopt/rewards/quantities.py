"""Reads numbers with their units, in the notation of `notation`. All else is an expression.

A unit, a currency or a percent sign stays beside its number. Words of other languages are units too: `7个`, `5 см`, `5 mètres`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod

from rlopt.rewards.notation import unmarked

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
    "度": "degree",
    "pct": "percent", "ppm": "ppm", "T": "tesla",
}  # fmt: skip
_TEENS = re.findall(r"\w+", """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen""")  # fmt: skip
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_WORDS = {word: value for value, word in enumerate(_TEENS)} | {word: 10 * tens for tens, word in enumerate(_TENS, 2)}
_NO_UNIT = frozenset(_WORDS) | frozenset(re.findall(r"\w+", """
    and or to from minus plus times over not no maybe but than then if is are am pm dozen hundred thousand million billion
    trillion half quarter third sin cos tan cot csc log ln exp sqrt pi mod choose factorial base infinity infinite solutions
    remainder power even odd nor vs versus through until between either"""))  # fmt: skip
_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "mille": 10**3, "mila": 10**3, "tausend": 10**3, "тысяч": 10**3, "тысяча": 10**3, "тысячи": 10**3, "тыс": 10**3,
    "millionen": 10**6, "millones": 10**6, "milioni": 10**6, "миллион": 10**6, "миллиона": 10**6, "миллионов": 10**6,
    "млн": 10**6, "milliard": 10**9, "milliarden": 10**9, "миллиард": 10**9, "миллиарда": 10**9, "миллиардов": 10**9,
    "млрд": 10**9,
    "百": 100, "千": 10**3, "천": 10**3, "万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8,
}  # fmt: skip
SCALE = (
    rf"(?:(?:{'|'.join(word for word in _SCALES if len(word) > 1)})s?\b\.?|(?:千(?![米克瓦卡赫帕伏牛焦])|[百천万萬만亿億억])+)"
)
"""A word, or signs, by which a number is multiplied; `千米` is a kilometre."""
_IN_WORDS = re.compile(
    rf"^⟨?\s*(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_TEENS[1:10])}))?|({'|'.join(_TEENS)}))(?![\w-])", re.IGNORECASE
)
_FOREIGN_NO_UNIT = re.compile(r"[半成折割或和及与]|以上|以下|以内|未満|이상|이하|^(?:반|или|и|около)$")
"""What stands behind a number in another language and is no unit: half, tenths, or, and, at least."""
_DIGITS = 4000
"""The most digits of a number; a longer one is treated as text."""


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
_GROUPED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}(?!\d))(?:\.\d+)?"
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
_SCALED = re.compile(rf"\s*⟨?\s*({SCALE})(.*)", re.IGNORECASE)
_SIGN = re.compile(r"\s*([-+]?)\s*")
UNSPACED = "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A character of the scripts of Chinese, Japanese and Korean, where a word may follow a number without a space."""
_GREEK = re.compile("[\u0370-\u03ff]")
_UNIT_TOKEN = re.compile(r"\^?\\circ|°|\\%|%|\^\s*\{?\s*-?\d\s*\}?|/|\*|\\cdot|[^\W\d_]+(?:-[^\W\d_]+)*\.?|[$€£¥₹]|\\\$|\S")


def quantity(text: str, thousands: bool) -> Quantity | None:
    """The number, with or without a unit, that a text in normal notation states; None if it states none.

    `thousands`: a comma before three digits may separate thousands where nothing else decides; else `300,500` is two numbers.
    """
    text = _IN_WORDS.sub(lambda found: str(sum(_WORDS[word.lower()] for word in found.groups() if word)), text)
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
    scale = _SCALED.match(tail)
    if scale:
        value, tail = value * _scale(scale[1].lower().rstrip(".")), scale[2].removeprefix("⟩")
    unit = _unit(tail)
    if unit is None or (currency and unit and unit not in (currency, "dollar") and not unit.startswith("/")):
        return None
    unit = f"{currency}{unit if unit.startswith('/') else ''}" if currency else unit or None
    if grouped and not (thousands or unit or scale or re.search(r",0", body[:end]) or "." in body[:end]):
        return None
    return Quantity(factor * value, unit, whole and value.denominator == 1)


def _scale(word: str) -> int:
    return _SCALES.get(word) or _SCALES.get(word.removesuffix("s")) or prod(_SCALES[sign] for sign in word)


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
    plain = re.sub(r"\\mu\s*", "μ", unmarked(tail).replace(r"\Omega", "Ω"))
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
            if len(word) == 1 and word.isascii() and not (upright or spaced or words):
                return None
            words.append(_UNITS.get(word) or _UNITS[word.lower()])
        elif re.fullmatch(r"[A-Za-z]{3,}(-[A-Za-z]+)*", word) and word.lower() not in _NO_UNIT and (upright or spaced or words):
            words.append(_singular(word.lower()))
            named += 1
        elif _is_foreign(word) and (len(word) > 1 or re.match(UNSPACED, word) or upright or spaced or words):
            words.append(word.lower())
            named += 1
        elif word.lower() in ("of", "a", "an", "the"):
            continue
        else:
            return None
        if named > 4:
            return None
    return _spelled(words)


def _is_foreign(word: str) -> bool:
    """Whether this is a word of letters that are neither English nor, as variables, Greek, and can be a unit."""
    return word.isalpha() and not word.isascii() and not _GREEK.search(word) and not _FOREIGN_NO_UNIT.search(word)


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
