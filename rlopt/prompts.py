"""From rows to prompts: which columns hold what, how a prompt is worded for the model, and what of an answer counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from rlopt import arithmetic, latex
from rlopt.config import DataConfig
from rlopt.data import Tokenizer, Unusable, encode, refuse_unusable
from rlopt.errors import RloptError
from rlopt.rows import look_up, read_rows
from rlopt.types import Prompt

Messages = list[dict[str, str]]
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
    """

    prompts: list[Prompt]
    numbers: list[int]
    about: str
    left_out: Mapping[str, list[int]]


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

    def ids(self, asked: str | Messages) -> tuple[int, ...]:
        """Token ids of a row's prompt."""
        if not self.chat:
            text = self._within(asked) if isinstance(asked, str) else "\n\n".join(m["content"] for m in self._put(asked))
            return tuple(encode(self.tokenizer, text))
        messages = self._put([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise Unusable(f"the tokenizer's chat template refuses it ({error})") from None
        return tuple(encode(self.tokenizer, text, special=False))  # the chat template has written them

    def _within(self, text: str) -> str:
        return self.template.replace("{prompt}", text) if self.template else text

    def _put(self, messages: Messages) -> Messages:
        *before, last = messages
        put = [*before, {**last, "content": self._within(last["content"])}]
        if self.system and put[0]["role"] != "system":
            put.insert(0, {"role": "system", "content": self.system})
        return put


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


def _breaks(text: str | None) -> str | None:
    """A command line cannot hold a line break, so there `\\n` is one; a text from a file has its own."""
    return text.replace("\\n", "\n") if text and "\n" not in text else text


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
    called, prompt_key, answer_key = recognise(f"{key}={name}", rows[0][1], config)
    kept, dropped = list[tuple[int, str | Messages, str, dict[str, Any]]](), dict[str, list[int]]()
    for number, row in rows:
        try:
            kept.append((number, asked(row, prompt_key), _text(row, answer_key), row))
        except Unusable as why:
            dropped.setdefault(str(why), []).append(number)
    kind = config.answer_format if config.answer_format != "auto" else _guess([answer for *_, answer, _ in kept])
    prompts, numbers = [], []
    for number, question, text, row in kept:
        try:
            answer = final_answer(text, kind)
            columns = {column: value for column, value in row.items() if column != prompt_key}
            prompts.append(make_prompt(f"{Path(name).name}:{number}", question, answer, name, words, columns))
            numbers.append(number)
        except Unusable as why:
            dropped.setdefault(str(why), []).append(number)
    if config.invalid_rows == "refuse":
        refuse_unusable(f"{key}={name}", dropped, len(prompts), "rows", "row")
    about = f"{called} ({prompt_key}, {answer_key}{MEANING[kind]}){', as conversations' if words.chat else ''}"
    return _within(Loaded(prompts, numbers, about, dropped), longest, f"{key}={name}")


MEANING: Mapping[AnswerFormat, str] = {"text": "", "hash": " after ####", "boxed": r" in \boxed{}"}


def recognise(where: str, row: Mapping[str, Any], config: DataConfig) -> tuple[str, str, str]:
    """What the rows are called, and their keys of prompt and answer.

    Raises:
        RloptError: the columns are not known, or those that the config names are not there.
    """
    there = ", ".join(sorted(row))
    for setting, key in (("data.prompt_key", config.prompt_key), ("data.answer_key", config.answer_key)):
        if key and look_up(row, key) is None:
            raise RloptError(f"{setting}={key}: {where} has no such column; there are {there}")
    for called, prompt_key, answer_key in SCHEMAS:
        keys = config.prompt_key or prompt_key, config.answer_key or answer_key
        if all(look_up(row, key) is not None for key in keys):
            return called if keys == (prompt_key, answer_key) else "columns as named", *keys
    raise RloptError(f"{where}: columns {there} do not say which holds what; set data.prompt_key and data.answer_key")


def final_answer(text: str, kind: AnswerFormat) -> str:
    """What counts of an answer: all of it, what follows the last `####`, or what the last `\\boxed{}` holds."""
    if kind == "hash":
        text = text.rpartition("####")[2].replace(",", "") if "####" in text else ""
    elif kind == "boxed":
        text = next(reversed(latex.boxes(text)), "")
    text = text.strip()
    if not text:
        raise Unusable("the answer is empty" if kind == "text" else f"the answer has nothing{MEANING[kind]}")
    return text


def _guess(answers: list[str]) -> AnswerFormat:
    """What most of the answers have; the others are then answers without what counts."""
    if 2 * sum("####" in answer for answer in answers) > len(answers):
        return "hash"
    return "boxed" if 2 * sum(bool(latex.boxes(answer)) for answer in answers) > len(answers) else "text"


def asked(row: Mapping[str, Any], key: str) -> str | Messages:
    """The prompt of a row, text or messages; raises Unusable."""
    value = look_up(row, key)
    if isinstance(value, list) and value:
        for message in value:
            if not isinstance(message, dict) or not all(isinstance(message.get(part), str) for part in ("role", "content")):
                raise Unusable(f"{key} is a list, but not of messages with role and content")
        return [{"role": message["role"], "content": message["content"]} for message in value]
    return _text(row, key)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = look_up(row, key)
    if value is None:
        raise Unusable(f"no {key}, only {', '.join(sorted(row))}")
    if not isinstance(value, str | int | float):
        raise Unusable(f"{key} is no text but a {type(value).__name__}")
    if not str(value).strip():
        raise Unusable(f"{key} is empty")
    return str(value)


def make_prompt(name: str, asked: str | Messages, answer: str, source: str, words: Wording, columns: dict[str, Any]) -> Prompt:
    """The prompt of a row, worded; raises Unusable."""
    ids = words.ids(asked)
    if not ids:
        raise Unusable("prompt has no token that the tokenizer knows")
    if isinstance(asked, str):
        return Prompt(name, ids, asked, answer, source, columns)
    return Prompt(name, ids, "\n\n".join(m["content"] for m in asked), answer, source, {**columns, "messages": asked})


def apart(train: Loaded, held_out: Sequence[Prompt]) -> Loaded:
    """`train` without the prompts that are evaluated on."""
    there = {prompt.text for prompt in held_out}
    kept = _without(train, "also in data.eval", lambda prompt: prompt.text in there)
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
    return Loaded([prompt for _, prompt in stay], [number for number, _ in stay], loaded.about, left_out)
