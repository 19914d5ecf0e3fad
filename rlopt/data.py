"""Prompts: read once, tokenised once, and dealt to batches by a pure function of seed and batch number.

Because `Dealer.rows` depends on nothing else, a resumed run deals the same rows, none skipped and none repeated.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlopt import arithmetic
from rlopt.config import DataConfig
from rlopt.errors import RloptError
from rlopt.types import Prompt


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer here."""

    eos_token_id: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Deal:
    """A prompt handed to a batch.

    Attributes:
        draw: what tells this draw of the prompt from others: how often the data had been gone through before, or for a spare
            its place. It is part of every sample's seed.
        spares: prompts to be taken one after another while the samples show no signal.
    """

    prompt: Prompt
    draw: str
    spares: tuple["Deal", ...] = ()


class Dealer:
    """Deals rows: every epoch is a new seeded shuffle of all of them, and batches follow one another through it."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self._count, self._per_step, self._seed = count, per_step, seed
        self._order: tuple[int, list[int]] = (-1, [])  # of the last epoch asked for: a shuffle is not made 16 times a step

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(row, epoch) of every place of batch `batch` (1-based)."""
        first = (batch - 1) * self._per_step
        places = [divmod(position, self._count) for position in range(first, first + self._per_step)]
        return [(self._shuffled(epoch)[place], epoch) for epoch, place in places]

    def deals(self, batch: int, prompts: list[Prompt], refills: int) -> list[Deal]:
        """The prompts of batch `batch`, each with `refills` spares."""
        return [
            Deal(prompts[row], str(epoch), tuple(self._spare(batch, place, i, prompts) for i in range(refills)))
            for place, (row, epoch) in enumerate(self.rows(batch))
        ]

    def _spare(self, batch: int, place: int, number: int, prompts: list[Prompt]) -> Deal:
        draw = f"spare {batch}.{place}.{number}"
        return Deal(prompts[random.Random(f"{self._seed}/{draw}").randrange(self._count)], draw)

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(self._count))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]


def sample_seed(run_seed: int, prompt_id: str, draw: str, index: int) -> int:
    """The seed of one sample: 63 bits of a hash, so that scheduling cannot change what is drawn."""
    key = f"{run_seed}/{prompt_id}/{draw}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1


class Unusable(Exception):
    """Why a recorded row cannot be used. Never leaves its reader."""


def refuse_unusable(where: str, dropped: Mapping[str, list[int]], usable: int, what: str, place: str) -> None:
    """Refuse a file of which some rows cannot be used.

    Args:
        where: the setting and its value.
        dropped: reason to the numbers of its rows.
        usable: rows that can be used.
        what, place: what the rows hold and how one is found: `rows` and `row`, or `groups` and `line`.
    """
    count = sum(map(len, dropped.values()))
    if count:
        reasons = "; ".join(f"{place} {numbers[0]}: {why}" + _more(numbers) for why, numbers in dropped.items())
        raise RloptError(
            f"{where}: {count} of {count + usable} {what} are unusable ({reasons}); mend them, or data.invalid_rows=drop"
        )


def _more(numbers: list[int]) -> str:
    return f" (and {len(numbers) - 1} more like it)" if len(numbers) > 1 else ""


def ended(ids: list[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """An answer's ids with the end token, once."""
    return tuple(ids) if ids[-1:] == [tokenizer.eos_token_id] else (*ids, tokenizer.eos_token_id)


def fingerprint(tokenizer: Any) -> str:
    """What tells tokenizers apart whose ids mean different things: a hash of the vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(vocabulary.encode(), digest_size=8).hexdigest()


def load_prompts(config: DataConfig, seed: int, tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    """All training prompts.

    Args:
        seed: of the embedded task's problems.
        max_tokens: the longest prompt that leaves the model room to answer.

    Raises:
        RloptError: no file, no rows, a row that cannot be read, or a prompt that is too long.
    """
    if config.train == "arithmetic":
        rows = [(p.text, p.text, str(p.answer)) for p in arithmetic.problems(seed, config.size)]
    else:
        rows = _read_rows(config)
    prompts = [Prompt(key, tuple(tokenizer.encode(text)), text, answer, config.train) for key, text, answer in rows]
    for prompt in prompts:
        if len(prompt.token_ids) > max_tokens:
            raise RloptError(
                f"data.train={config.train}: prompt {prompt.id} has {len(prompt.token_ids)} tokens and the model has room "
                f"for {max_tokens}; shorten it, or lower rollout.max_new_tokens"
            )
    return prompts


def _read_rows(config: DataConfig) -> list[tuple[str, str, str]]:
    """(id, prompt, answer) of every row of a JSONL file."""
    rows = []
    for number, row in read_jsonl("data.train", config.train):
        prompt_key = config.prompt_key or next((key for key in ("prompt", "question") if key in row), "prompt")
        answer_key = config.answer_key or "answer"
        for key, setting in ((prompt_key, "data.prompt_key"), (answer_key, "data.answer_key")):
            if not isinstance(row.get(key), str | int | float):
                where = f"data.train={config.train}: row {number}"
                raise RloptError(f"{where} has no text under {key!r}, only {sorted(row)}; set {setting}")
        rows.append((f"{Path(config.train).name}:{number}", str(row[prompt_key]), str(row[answer_key])))
    return rows


def read_jsonl(key: str, name: str) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every row of the file `name`, which the config key `key` names."""
    path = Path(name)
    if not path.is_file():
        raise RloptError(f"{key}={name}: no such file; give a JSONL file, or arithmetic for the embedded task")
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines, which cuts inside a text at U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RloptError(f"{key}={name}: row {number} is not JSON ({error}); want one object a line") from None
        if not isinstance(row, dict):
            raise RloptError(f"{key}={name}: row {number} is no JSON object; want one object a line")
        rows.append((number, row))
    if not rows:
        raise RloptError(f"{key}={name}: the file has no rows; put one JSON object a line")
    return rows
