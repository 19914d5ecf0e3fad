"""Recorded rows: preference pairs, pairs of steps, and answers to imitate, read once and tokenized once.

A prompt is tokenized by itself, as samplers see it, and its answer in one piece after it. A step is part of an answer: the
steps before it are tokenized with it, and the row is refused where a token reaches across the place where the step begins.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlopt.config.sections import DataConfig
from rlopt.core.errors import RloptError
from rlopt.core.samples import Example, Prompt
from rlopt.data import arithmetic, sums, verbose
from rlopt.data.arithmetic import Problem
from rlopt.data.columns import answer_of, check_named, prompt_of
from rlopt.data.conversations import regular
from rlopt.data.prompts import make_prompt
from rlopt.data.readers import Row, look_up, read_rows
from rlopt.data.tokenization import Tokenizer, append_eos, encode
from rlopt.data.unusable import UnusableRow, need_characters, normalize_text, refuse_unusable
from rlopt.data.wording import Wording

Rows = Literal["pairs", "step_pairs", "answers"]

SOLVED: Mapping[str, tuple[Callable[[int, int, bool], list[Problem]], Callable[[Problem], str]]] = {
    "arithmetic": (arithmetic.problems, arithmetic.worked),
    "sums": (sums.problems, sums.solution),
    "verbose": (verbose.problems, arithmetic.worked),
}
"""Embedded tasks with answers to imitate: what makes problems (by seed, number, and whether held out), and what solves one."""


@dataclass(frozen=True)
class Loaded:
    """The rows of a file that can be used, why the others cannot (reason to their line numbers), and what else to know."""

    examples: list[Example]
    dropped: Mapping[str, list[int]]
    notes: tuple[str, ...] = ()


def load_examples(
    key: Literal["data.train", "data.eval"], config: DataConfig, rows: Rows, words: Wording, max_tokens: int, seed: int
) -> Loaded:
    """The rows of `data.train` or `data.eval`.

    With `rows="answers"`, an embedded task of `SOLVED` is `data.size` problems of `seed` with worked solutions.

    Args:
        max_tokens: the longest sequence, prompt and answer together.

    Raises:
        RloptError: nothing to read, rows that cannot be used and are not to be dropped, or none left.
    """
    name, split = (config.train, config.split) if key == "data.train" else (str(config.eval), config.eval_split)
    if name in SOLVED and rows == "answers":
        problems, worked = SOLVED[name]
        solved = enumerate(problems(seed, config.size, key == "data.eval"), 1)
        read: list[Row] = [(number, {"prompt": one.text, "completion": worked(one)}) for number, one in solved]
    elif name in SOLVED:
        raise RloptError(f"{key}={name}: the embedded task has no pairs; make some with python -m rlopt.pairs, or give a file")
    else:
        read = read_rows(key, name, config.subset, split)
    parse: Callable[[Any, Wording, str], Example] = {"pairs": _pair, "step_pairs": _step_pair, "answers": _answer}[rows]
    examples, dropped = [], dict[str, list[int]]()
    keys = _named(f"{key}={name}", config, rows, read)
    for number, row in read:
        try:
            need_characters(row)
            named = {column: look_up(row, path) for column, path in keys.items()}
            example = parse(regular({**row, **named}), words, f"{key}:{name}:{number}")
            longest = len(example.prompt.token_ids) + max(map(len, example.answers))
            if longest > max_tokens:
                raise UnusableRow(f"more than {max_tokens} tokens")
            examples.append(example)
        except UnusableRow as why:
            dropped.setdefault(str(why), []).append(number)
    if config.invalid_rows == "refuse":
        refuse_unusable(f"{key}={name}", dropped, len(examples), "rows", "row")
    if not examples:
        raise RloptError(f"{key}={name}: none of {len(read)} rows can be used ({'; '.join(dropped)})")
    return Loaded(examples, dropped, tuple(_notes(read, examples, keys)))


READ = {"prompt", "question", "problem", "answer", "completion", "response", "chosen", "rejected", "tools"}
READ |= {"initial_reason_steps", "full_chosen", "full_rejected", "messages", "conversations"}


def _named(where: str, config: DataConfig, rows: Rows, read: Sequence[Row]) -> dict[str, str]:
    """The columns that the config names, by the names that are read here."""
    if config.answer_key and rows != "answers":
        raise RloptError(f"data.answer_key={config.answer_key}: means nothing to pairs, which are chosen and rejected; drop it")
    check_named(where, [row for _, row in read], config)
    keys = {"prompt": config.prompt_key, "completion": config.answer_key}
    return {column: path for column, path in keys.items() if path}


def _notes(read: Sequence[Row], examples: Sequence[Example], keys: Mapping[str, str]) -> Iterator[str]:
    """Columns without effect, answers that are not learned, and rows that occur more than once."""
    used = READ | {path.split(".")[0] for path in keys.values()} | set(keys.values())
    if ignored := sorted({column for _, row in read for column in row} - used):
        yield f"ignored columns: {', '.join(ignored)}"
    messages = [example.prompt.columns.get("messages", ()) for example in examples]
    if earlier := sum(any(one["role"] == "assistant" for one in several) for several in messages):
        yield f"{earlier} of {len(examples)} prompts have answers in them, which are not learned: only the last one is"
    extra = len(examples) - len({(normalize_text(example.prompt.text), example.answers) for example in examples})
    if extra:
        yield f"{extra} of {len(examples)} rows repeat another, but for white space"


def _pair(row: Mapping[str, Any], words: Wording, name: str) -> Example:
    """Whole answers: `chosen` and `rejected`; in rows of Math-Step-DPO-10K the prefix and all that follows from the step on."""
    before = _text(row, "initial_reason_steps", "") if "full_chosen" in row else ""
    keys = ("full_chosen", "full_rejected") if "full_chosen" in row else ("chosen", "rejected")
    chosen, rejected = _sides(row, *keys)
    sides = _ended(before + chosen, words.tokenizer), _ended(before + rejected, words.tokenizer)
    if sides[0] == sides[1]:
        raise UnusableRow("chosen and rejected are the same tokens")
    return Example(_prompt(row, words, name), sides)


def _step_pair(row: Mapping[str, Any], words: Wording, name: str) -> Example:
    """The step alone, after prompt and prefix; no end token, for a step does not end an answer."""
    prefix, tokenizer = _text(row, "initial_reason_steps", None), words.tokenizer
    chosen, rejected = _sides(row, "chosen", "rejected")
    for side, step in (("chosen", chosen), ("rejected", rejected)):
        full = row.get(f"full_{side}")
        if isinstance(full, str) and not full.startswith(step):
            raise UnusableRow(
                f"initial_reason_steps does not end where the step begins: full_{side} does not begin with {side}"
            )
    before = encode(tokenizer, prefix, special=False)
    sides = []
    for side, step in (("chosen", chosen), ("rejected", rejected)):
        whole = encode(tokenizer, prefix + step, special=False)
        if whole[: len(before)] != before or len(whole) == len(before):
            raise UnusableRow(f"a token reaches from initial_reason_steps into {side}")
        sides.append(tuple(whole[len(before) :]))
    if sides[0] == sides[1]:
        raise UnusableRow("chosen and rejected are the same tokens")
    start = _prompt(row, words, name)
    begun = replace(start, token_ids=(*start.token_ids, *before), text=start.text + prefix)
    return Example(begun, (sides[0], sides[1]))


def _answer(row: Mapping[str, Any], words: Wording, name: str) -> Example:
    key = next((key for key in ("completion", "response", "answer") if key in row), "completion")
    text = _text(row, key, None)
    if not text:
        raise UnusableRow(f"{key} is empty")
    return Example(_prompt(row, words, name), (_ended(text, words.tokenizer),))


def _prompt(row: Mapping[str, Any], words: Wording, name: str) -> Prompt:
    key = next((key for key in ("prompt", "question", "problem") if key in row), "prompt")
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return make_prompt(name, prompt_of(row, key), answer_of(row), name.rpartition(":")[0], words, tools)


def _sides(row: Mapping[str, Any], chosen_key: str, rejected_key: str) -> tuple[str, str]:
    chosen, rejected = _text(row, chosen_key, None), _text(row, rejected_key, None)
    for key, text in ((chosen_key, chosen), (rejected_key, rejected)):
        if not text.strip():
            raise UnusableRow(f"{key} is empty")
    if chosen == rejected:
        raise UnusableRow(f"{chosen_key} and {rejected_key} are equal")
    return chosen, rejected


def _text(row: Mapping[str, Any], key: str, default: str | None) -> str:
    value = row.get(key, default)
    match value:
        case [{"role": "assistant", "content": str(said), **more}]:  # TRL's form where the prompt is a conversation
            if lost := sorted(str(name) for name, value in more.items() if value is not None):
                raise UnusableRow(f"{key} has a message with {lost[0]}, which would be lost")
            return said
    if not isinstance(value, str):
        raise UnusableRow(f"no text under {key!r}, only {sorted(row)}" if key not in row else f"{key} is not text")
    return value


def _ended(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """An answer's ids with the end token, once."""
    ids = encode(tokenizer, text, special=False)
    if not ids:
        raise UnusableRow("an answer has no token that the tokenizer knows")
    return append_eos(ids, tokenizer)
