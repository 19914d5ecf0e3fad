"""Prompts dealt to batches by a pure function of seed and batch number, and what all readers of rows share.

Because `Dealer.rows` depends on nothing else, a resumed run deals the same rows, none skipped and none repeated.
"""

import hashlib
import json
import random
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from rlopt.core.errors import RloptError
from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Prompt


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer here."""

    eos_token_id: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def apply_chat_template(
        self, conversation: Any, *, tokenize: Literal[False], add_generation_prompt: bool, **options: Any
    ) -> str: ...


class PromptSampler:
    """Deals rows: every epoch is a new seeded shuffle of all of them, and batches follow one another through it."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self._count, self._per_step, self._seed = count, per_step, seed
        self._order: tuple[int, list[int]] = (-1, [])  # of the last epoch asked for: a shuffle is not made 16 times a step

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(row, epoch) of every place of batch `batch` (1-based)."""
        first = (batch - 1) * self._per_step
        places = [divmod(position, self._count) for position in range(first, first + self._per_step)]
        return [(self._shuffled(epoch)[place], epoch) for epoch, place in places]

    def requests(self, batch: int, prompts: list[Prompt], refills: int) -> list[SampleRequest]:
        """The prompts of batch `batch`, each with `refills` spares."""
        return [
            SampleRequest(prompts[row], str(epoch), tuple(self._spare(batch, place, i, prompts) for i in range(refills)))
            for place, (row, epoch) in enumerate(self.rows(batch))
        ]

    def _spare(self, batch: int, place: int, number: int, prompts: list[Prompt]) -> SampleRequest:
        draw = f"spare {batch}.{place}.{number}"
        return SampleRequest(prompts[random.Random(f"{self._seed}/{draw}").randrange(self._count)], draw)

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(self._count))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]


class UnusableRow(Exception):
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


def need_characters(what: Any) -> None:
    """Refuse a text, or anything with texts in it, that no file could hold.

    Raises:
        Unusable: a character of it has one half alone.
    """
    try:
        (what if isinstance(what, str) else json.dumps(what, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        raise UnusableRow("has half a character (a surrogate without its other half)") from None


def one_spaced(text: str) -> str:
    """For telling whether two texts say the same: characters in their usual form, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """Token ids of a text, with `special` those that the tokenizer puts around it.

    Raises:
        Unusable: it is no text, which no tokenizer says as plainly.
    """
    need_characters(text)
    return tokenizer.encode(text, add_special_tokens=special)


def append_eos(ids: list[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """An answer's ids with the end token, once."""
    return tuple(ids) if ids[-1:] == [tokenizer.eos_token_id] else (*ids, tokenizer.eos_token_id)


def fingerprint(tokenizer: Any) -> str:
    """What tells tokenizers apart whose ids mean different things: a hash of the vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(vocabulary.encode(), digest_size=8).hexdigest()
