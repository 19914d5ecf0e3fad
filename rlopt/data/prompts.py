"""From rows to prompts: which columns hold what, how a prompt is worded for the model, and what of an answer counts."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlopt.config.sections import DataConfig
from rlopt.core.errors import RloptError
from rlopt.core.samples import Prompt
from rlopt.data import arithmetic
from rlopt.data.prompt_sampler import Tokenizer, UnusableRow, encode, need_characters, one_spaced, refuse_unusable
from rlopt.data.readers import Row, look_up, read_rows
from rlopt.rewards import latex

Messages = list[dict[str, Any]]
"""As chat templates read them: `role`, `content`, and whatever else a template knows, such as `tool_calls`."""

AnswerFormat = Literal["text", "hash", "boxed"]

SCHEMAS = (
    ("verl's columns", "prompt", "reward_model.ground_truth"),
    ("TRL's columns", "prompt", "answer"),
    ("TRL's columns", "prompt", "solution"),
    ("questions and answers", "question", "answer"),
    ("problems and answers", "problem", "answer"),
    ("problems and solutions", "problem", "solution"),
)
"""What rows are called that have these two columns, prompt and answer; the first that fits the first row is taken for all."""


@dataclass(frozen=True)
class Loaded:
    """Prompts of one data set.

    Attributes:
        numbers: of their rows.
        about: what the rows were taken for, for people.
        left_out: reason to the numbers of the rows that are not among them.
        notes: what else people should know of the rows.
    """

    prompts: list[Prompt]
    numbers: list[int]
    about: str
    left_out: Mapping[str, list[int]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wording:
    """How the prompt of a row becomes token ids.

    Attributes:
        template: text around a prompt, which stands where it has `{prompt}`; in a conversation, around its last message.
        chat: put it as a conversation, in the words of the tokenizer's chat template.
        system: begins such a conversation that does not begin with a system message of its own.
    """

    tokenizer: Tokenizer
    template: str | None
    chat: bool
    system: str | None

    def ids(self, asked: str | Messages, tools: Any = None) -> tuple[int, ...]:
        """Token ids of a row's prompt; `tools` as chat templates read them.

        A conversation that ends with the assistant goes on from there.

        Raises:
            Unusable: the chat template refuses it, or would leave something of it out.
        """
        if not self.chat:
            return tuple(encode(self.tokenizer, self._within(asked) if isinstance(asked, str) else self._plainly(asked, tools)))
        messages = self._put([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)
        self._check_template(messages, tools)
        begun = messages[-1]["role"] == "assistant"
        options: dict[str, Any] = {"continue_final_message": True} if begun else {}
        options |= {"tools": tools} if tools else {}
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not begun, **options)
        except Exception as error:  # templates are programs, and may raise anything
            raise UnusableRow(f"the tokenizer's chat template refuses it ({error or type(error).__name__})") from None
        if begun and not (messages[-1].get("content") and text.endswith(messages[-1]["content"])):
            raise UnusableRow("the chat template does not end with what the assistant has begun, so it cannot go on from there")
        return tuple(encode(self.tokenizer, text, special=False))  # the chat template has written them

    def _within(self, text: str) -> str:
        return self.template.replace("{prompt}", text) if self.template else text

    def _plainly(self, messages: Messages, tools: Any) -> str:
        """A conversation without a chat template: what was said, one after another."""
        more = ["tools"] * bool(tools) + sorted({name for message in messages for name in message} - {"role", "content"})
        if more:
            raise UnusableRow(f"{more[0]} would be lost: prompts are no conversations here (data.chat)")
        return "\n\n".join(said(message) for message in self._put(messages))

    def _put(self, messages: Messages) -> Messages:
        """With the template around what the user said last, and the system message."""
        put = list(messages)
        if self.template:
            place = max((i for i, message in enumerate(put) if message["role"] == "user"), default=None)
            if place is None:
                raise UnusableRow("has no user message for data.template to stand around")
            put[place] = {**put[place], "content": self._within(said(put[place]))}
        if self.system and put[0]["role"] not in ("system", "developer"):
            put.insert(0, {"role": "system", "content": self.system})
        return put

    def _check_template(self, messages: Messages, tools: Any) -> None:
        """Refuse what the chat template does not read: it would be left out without a word."""
        template = str(getattr(self.tokenizer, "chat_template", ""))
        more = ["tools"] * bool(tools) + sorted({name for message in messages for name in message} - {"role", "content"})
        for name in more:
            if name not in template:
                raise UnusableRow(f"{name} would be lost: the tokenizer's chat template does not read it")


def wording(config: DataConfig, tokenizer: Tokenizer) -> Wording:
    """What the keys of `data` ask for, with this tokenizer.

    Raises:
        RloptError: they ask for a chat template, or need one, and the tokenizer has none.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    if config.chat == "always" and not has:
        raise RloptError("data.chat=always: the model's tokenizer has no chat template; use data.chat=auto, or data.template")
    chat = has and config.chat != "never"
    if config.system and not chat:
        raise RloptError(f"data.system={config.system!r}: prompts are no conversations here; put it into data.template")
    return Wording(tokenizer, _breaks(config.template), chat, _breaks(config.system))


_LATEX = (
    "abla|atural|e|earrow|eg|eq|eqq|ewline|exists|geq|i|leq|less|gtr|mid|olimits|onumber|ormalsize|ot|otin|parallel|prec|succ|"
    "rightarrow|leftarrow|leftrightarrow|Rightarrow|Leftarrow|sim|subseteq|supseteq|u|vdash|warrow"
)
_BREAK = re.compile(rf"\\n(?!(?:{_LATEX})(?![a-zA-Z]))")
"""A line break as it is typed, but not the beginning of a LaTeX command such as `\\nabla`."""


def _breaks(text: str | None) -> str | None:
    """Where a text has no line break of its own, a typed `\\n` is one."""
    return _BREAK.sub("\n", text) if text and "\n" not in text else text


def said(message: Mapping[str, Any]) -> str:
    """The text of a message; a message may be a call of tools alone."""
    return message.get("content") or ""


def load_prompts(
    config: DataConfig, key: Literal["data.train", "data.eval"], name: str, seed: int, words: Wording, max_tokens: int
) -> Loaded:
    """The prompts of the data set `name`, which the config key `key` names.

    Args:
        seed: of the embedded task's problems.
        max_tokens: the longest prompt that leaves the model room to answer; those longer than that or than
            `data.max_prompt_tokens` are left out and counted.

    Raises:
        RloptError: nothing to read, no columns that are known, a row that cannot be used, or no prompt left.
    """
    longest = min(max_tokens, config.max_prompt_tokens or max_tokens)
    if name == "arithmetic":
        problems = arithmetic.problems(seed, config.size, held_out=key == "data.eval")
        prompts = [make_prompt(p.text, p.text, str(p.answer), name, words, {}) for p in problems]
        return _within(Loaded(prompts, list(range(1, len(prompts) + 1)), "the embedded task", {}), longest, f"{key}={name}")
    rows = read_rows(key, name, config.subset, config.split if key == "data.train" else config.eval_split)
    called, prompt_key, answer_key = recognise(f"{key}={name}", [row for _, row in rows], config)
    kept, dropped = list[tuple[int, str | Messages, str, dict[str, Any]]](), dict[str, list[int]]()
    for number, row in rows:
        try:
            need_characters(row)
            kept.append((number, asked(row, prompt_key), _text(row, answer_key), row))
        except UnusableRow as why:
            dropped.setdefault(str(why), []).append(number)
    kind = config.answer_format if config.answer_format != "auto" else _guess([answer for *_, answer, _ in kept])
    prompts, numbers = [], []
    for number, question, text, row in kept:
        try:
            answer = final_answer(text, kind)
            columns = {column: value for column, value in row.items() if column != prompt_key}
            prompts.append(make_prompt(f"{Path(name).name}:{number}", question, answer, name, words, columns))
            numbers.append(number)
        except UnusableRow as why:
            dropped.setdefault(str(why), []).append(number)
    if config.invalid_rows == "refuse":
        refuse_unusable(f"{key}={name}", dropped, len(prompts), "rows", "row")
    notes = [_others(rows, prompt_key, answer_key), _twice(prompts)]
    about = f"{called} ({prompt_key}, {answer_key}{MEANING[kind]}){', as conversations' if words.chat else ''}"
    loaded = Loaded(prompts, numbers, about, dropped, tuple(note for note in notes if note))
    return _within(loaded, longest, f"{key}={name}")


def _others(rows: Sequence[Row], prompt_key: str, answer_key: str) -> str | None:
    """Which columns are neither prompt nor answer."""
    used = {prompt_key, answer_key, answer_key.split(".")[0]}
    others = sorted({column for _, row in rows for column in row} - used)
    return f"other columns, which the reward gets: {', '.join(others)}" if others else None


def _twice(prompts: Sequence[Prompt]) -> str | None:
    """How many prompts are there more than once."""
    extra = len(prompts) - len({one_spaced(prompt.text) for prompt in prompts})
    return f"{extra} of {len(prompts)} prompts repeat another, but for white space" if extra else None


MEANING: Mapping[AnswerFormat, str] = {"text": "", "hash": " after ####", "boxed": r" in \boxed{}"}


def recognise(where: str, rows: Sequence[Mapping[str, Any]], config: DataConfig) -> tuple[str, str, str]:
    """What the rows are called, and their keys of prompt and answer; the first row that has both decides.

    Raises:
        RloptError: the columns are not known, or those that the config names are not there.
    """
    there = ", ".join(sorted({column for row in rows[:1000] for column in row}))
    for setting, key in (("data.prompt_key", config.prompt_key), ("data.answer_key", config.answer_key)):
        if key and all(look_up(row, key) is None for row in rows):
            raise RloptError(f"{setting}={key}: {where} has no such column; there are {there}")
    for row in rows:
        for called, prompt_key, answer_key in SCHEMAS:
            keys = config.prompt_key or prompt_key, config.answer_key or answer_key
            if all(look_up(row, key) is not None for key in keys):
                return called if keys == (prompt_key, answer_key) else "columns as named", *keys
    raise RloptError(f"{where}: columns {there} do not say which holds what; set data.prompt_key and data.answer_key")


_THOUSANDS = re.compile(r"[-+]?[$€£]?\d{1,3}(,\d{3})+(\.\d+)?")


def final_answer(text: str, kind: AnswerFormat) -> str:
    """What counts of an answer: all of it, what follows the last `####`, or what the last `\\boxed{}` holds."""
    if kind == "hash":
        text = text.rpartition("####")[2].strip() if "####" in text else ""
        text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    elif kind == "boxed":
        text = next(reversed(latex.boxes(text)), "")
    text = text.strip()
    if not text:
        raise UnusableRow("the answer is empty" if kind == "text" else f"the answer has nothing{MEANING[kind]}")
    return text


def _guess(answers: list[str]) -> AnswerFormat:
    """What most of the answers have; the others are then answers without what counts."""
    if 2 * sum("####" in answer for answer in answers) > len(answers):
        return "hash"
    return "boxed" if 2 * sum(bool(latex.boxes(answer)) for answer in answers) > len(answers) else "text"


def asked(row: Mapping[str, Any], key: str) -> str | Messages:
    """The prompt of a row, text or messages; raises Unusable."""
    value = look_up(row, key)
    return [_message(key, message) for message in value] if isinstance(value, list) and value else _text(row, key)


def _message(key: str, message: Any) -> dict[str, Any]:
    """A message with all that it has; raises Unusable."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnusableRow(f"{key} is a list, but not of messages with role and content")
    kept = {name: value for name, value in message.items() if value is not None}  # a table has all columns in every row
    content = kept.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if any(part is None for part in parts):
            raise UnusableRow(f"{key} has a message with content that is no text")
        kept["content"] = "".join(map(str, parts))
    elif not isinstance(content, str) and not (content is None and "tool_calls" in kept):
        raise UnusableRow(f"{key} is a list, but not of messages with role and content")
    return kept


def _text(row: Mapping[str, Any], key: str) -> str:
    value = look_up(row, key)
    if value is None:
        raise UnusableRow(f"no {key}, only {', '.join(sorted(row))}")
    if not isinstance(value, str | int | float):
        raise UnusableRow(f"{key} is no text but a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableRow(f"{key} is {value}")
    if not str(value).strip():
        raise UnusableRow(f"{key} is empty")
    return str(value)


def answer_of(row: Mapping[str, Any]) -> str:
    """What stands under `answer` where nothing depends on it; empty where that is no answer."""
    value = row.get("answer")
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)


def make_prompt(name: str, asked: str | Messages, answer: str, source: str, words: Wording, columns: dict[str, Any]) -> Prompt:
    """The prompt of a row, worded; raises Unusable."""
    ids = words.ids(asked, _tools(columns.get("tools")))
    if not ids:
        raise UnusableRow("prompt has no token that the tokenizer knows")
    if isinstance(asked, str):
        return Prompt(name, ids, asked, answer, source, columns)
    return Prompt(name, ids, "\n\n".join(map(said, asked)), answer, source, {**columns, "messages": asked})


def _tools(value: Any) -> Any:
    """The tools of a row, as a list; some data sets have them as JSON in a text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UnusableRow("tools is a text that is no JSON") from None
    return value or None


def drop_eval_overlap(train: Loaded, held_out: Sequence[Prompt]) -> Loaded:
    """`train` without the prompts that are evaluated on, whatever their white space."""
    there = {one_spaced(prompt.text) for prompt in held_out}
    kept = _without(train, "also in data.eval", lambda prompt: one_spaced(prompt.text) in there)
    if not kept.prompts:
        raise RloptError("data.train: every prompt is in data.eval too, so nothing is left to train on; give other rows")
    return kept


def _within(loaded: Loaded, max_tokens: int, where: str) -> Loaded:
    """Without the prompts that are too long."""
    why = f"prompts of more than {max_tokens} tokens"
    if not loaded.prompts:
        raise RloptError(f"{where}: no row can be used ({'; '.join(loaded.left_out)})")
    kept = _without(loaded, why, lambda prompt: len(prompt.token_ids) > max_tokens)
    if not kept.prompts:
        way_out = "lower rollout.max_new_tokens, raise data.max_prompt_tokens, or shorten them"
        raise RloptError(f"{where}: no prompt is left, {len(loaded.prompts)} are {why}; {way_out}")
    return kept


def _without(loaded: Loaded, why: str, out: Callable[[Prompt], bool]) -> Loaded:
    gone = [number for number, prompt in zip(loaded.numbers, loaded.prompts, strict=True) if out(prompt)]
    stay = [(number, prompt) for number, prompt in zip(loaded.numbers, loaded.prompts, strict=True) if not out(prompt)]
    left_out = {**loaded.left_out, **({why: gone} if gone else {})}
    return replace(loaded, prompts=[p for _, p in stay], numbers=[number for number, _ in stay], left_out=left_out)
