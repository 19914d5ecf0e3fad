"""From the rows of a data set to prompts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlopt.config.sections import DataConfig
from rlopt.core.errors import RloptError
from rlopt.core.samples import Prompt, Reference
from rlopt.data import arithmetic, guessing, reasoning, sums, verbose
from rlopt.data.columns import MEANING, final_reference, guess_format, prompt_of, recognize_columns, reference_of, texts_in
from rlopt.data.readers import Row, read_rows
from rlopt.data.unusable import UnusableRow, need_characters, normalize_text, refuse_unusable
from rlopt.data.wording import Messages, Wording, content_of


@dataclass(frozen=True)
class Loaded:
    """Prompts of one data set.

    Attributes:
        numbers: of their rows.
        about: how the rows were read, for people.
        left_out: reason to the numbers of the rows that are not among them.
        notes: what else people should know of the rows.
        answered: whether the rows have answers.
    """

    prompts: list[Prompt]
    numbers: list[int]
    about: str
    left_out: Mapping[str, list[int]]
    notes: tuple[str, ...] = ()
    answered: bool = True


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
    where = f"{key}={name}"
    if name in EMBEDDED:
        loaded = _embedded_task(name, seed, config.size, key == "data.eval", words)
    elif name.startswith(reasoning.PREFIX):
        loaded = _reasoning(where, name, seed, config.size, key == "data.eval", words)
    else:
        rows = read_rows(key, name, config.subset, config.split if key == "data.train" else config.eval_split)
        loaded = _from_rows(rows, name, where, config, words)
    return _within(loaded, min(max_tokens, config.max_prompt_tokens or max_tokens), where)


def _problems(
    of: Callable[[int, int, bool], list[arithmetic.Problem]],
) -> Callable[[int, int, bool], list[tuple[str, str, str]]]:
    return lambda seed, size, held_out: [(one.text, one.text, str(one.answer)) for one in of(seed, size, held_out)]


def _guessing(seed: int, size: int, held_out: bool) -> list[tuple[str, str, str]]:
    return [(f"{one.text}{one.hidden}", one.text, str(one.hidden)) for one in guessing.games(seed, size, held_out)]


EMBEDDED: Mapping[str, Callable[[int, int, bool], list[tuple[str, str, str]]]] = {
    "arithmetic": _problems(arithmetic.problems),
    "sums": _problems(sums.problems),
    "verbose": _problems(verbose.problems),
    "guessing": _guessing,
}
"""Embedded tasks: names, prompts and answers, by seed, number and whether they are held out."""


def _embedded_task(name: str, seed: int, size: int, held_out: bool, words: Wording) -> Loaded:
    dropped, prompts = dict[str, list[int]](), dict[int, Prompt]()
    for number, (called, text, answer) in enumerate(EMBEDDED[name](seed, size, held_out), 1):
        with _counted(dropped, number):
            prompts[number] = make_prompt(called, text, answer, name, words, {})
    return Loaded(list(prompts.values()), list(prompts), "the embedded task", dropped)


def _reasoning(where: str, name: str, seed: int, size: int, held_out: bool, words: Wording) -> Loaded:
    dropped, prompts = dict[str, list[int]](), dict[int, Prompt]()
    for number, problem in enumerate(reasoning.problems(where, name, seed, size, held_out), 1):
        with _counted(dropped, number):
            title, question, answer, columns = problem
            prompts[number] = make_prompt(title, question, answer, name, words, columns)
    return Loaded(list(prompts.values()), list(prompts), "problems of reasoning-gym", dropped)


def _from_rows(rows: Sequence[Row], name: str, where: str, config: DataConfig, words: Wording) -> Loaded:
    """The prompts of numbered rows; columns and the format of answers are recognized from all of them."""
    called, prompt_key, answer_key = recognize_columns(where, [row for _, row in rows], config)
    dropped: dict[str, list[int]] = {}
    readable = dict[int, tuple[str | Messages, Reference | None]]()
    for number, row in rows:
        with _counted(dropped, number):
            need_characters(row)
            readable[number] = prompt_of(row, prompt_key), reference_of(row, answer_key) if answer_key else None
    texts = [text for _, right in readable.values() if right for text in texts_in(right)]
    kind = config.answer_format if config.answer_format != "auto" else guess_format(texts)
    prompts: dict[int, Prompt] = {}
    for number, row in rows:
        if number not in readable:
            continue
        with _counted(dropped, number):
            question, right = readable[number]
            columns = {column: value for column, value in row.items() if column != prompt_key}
            title = f"{Path(name).name}:{number}"
            prompts[number] = make_prompt(title, question, final_reference(right, kind) if right else "", name, words, columns)
    if config.invalid_rows == "refuse":
        refuse_unusable(where, dropped, len(prompts), "rows", "row")
    notes = [_others(rows, prompt_key, answer_key), _twice(list(prompts.values()))]
    keys = f"{prompt_key}, {answer_key}{MEANING[kind]}" if answer_key else prompt_key
    about, told = f"{called} ({keys}){', as conversations' if words.chat else ''}", tuple(note for note in notes if note)
    return Loaded(list(prompts.values()), list(prompts), about, dropped, told, answered=answer_key is not None)


@contextmanager
def _counted(dropped: dict[str, list[int]], number: int) -> Iterator[None]:
    """Count row `number` in `dropped` if the code in here raises UnusableRow."""
    try:
        yield
    except UnusableRow as why:
        dropped.setdefault(str(why), []).append(number)


def _others(rows: Sequence[Row], prompt_key: str, answer_key: str | None) -> str | None:
    """Which columns are neither prompt nor answer."""
    used = {prompt_key, answer_key, (answer_key or "").split(".")[0]}
    others = sorted({column for _, row in rows for column in row} - used)
    return f"other columns, which the reward gets: {', '.join(others)}" if others else None


def _twice(prompts: Sequence[Prompt]) -> str | None:
    """How many prompts repeat another one."""
    extra = len(prompts) - len({normalize_text(prompt.text) for prompt in prompts})
    return f"{extra} of {len(prompts)} prompts repeat another, but for white space" if extra else None


def make_prompt(
    name: str, question: str | Messages, answer: Reference, source: str, words: Wording, columns: dict[str, Any]
) -> Prompt:
    """The prompt of a row, as token ids and text; raises UnusableRow."""
    ids = words.ids(question, _tools(columns.get("tools")))
    if not ids:
        raise UnusableRow("prompt has no token that the tokenizer knows")
    if isinstance(question, str):
        return Prompt(name, ids, question, answer, source, columns)
    return Prompt(name, ids, "\n\n".join(map(content_of, question)), answer, source, {**columns, "messages": question})


def _tools(value: Any) -> Any:
    """The tools of a row, as a list; some data sets have them as JSON in a text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UnusableRow("tools is text that is not JSON") from None
    return value or None


def drop_eval_overlap(train: Loaded, held_out: Sequence[Prompt]) -> Loaded:
    """`train` without the prompts that are evaluated on; white space does not matter."""
    there = {normalize_text(prompt.text) for prompt in held_out}
    kept = _without(train, "also in data.eval", lambda prompt: normalize_text(prompt.text) in there)
    if not kept.prompts:
        raise RloptError("data.train: every prompt is in data.eval too, so nothing is left to train on; give other rows")
    return kept


def _within(loaded: Loaded, max_tokens: int, where: str) -> Loaded:
    """Without the prompts that are too long."""
    why = f"prompts of more than {max_tokens} tokens"
    if max_tokens < 1:
        raise RloptError(
            f"rollout.max_new_tokens: is {1 - max_tokens} tokens too many for the model to have room for any prompt; lower it"
        )
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
