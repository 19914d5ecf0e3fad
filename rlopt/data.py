"""Prompts: read once, tokenised once, and dealt to batches by a pure function of seed and batch number.

Because `Dealer.batch` has no memory, a resumed run deals the same prompts, none skipped and none repeated.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlopt import arithmetic
from rlopt.config import DataConfig
from rlopt.errors import RloptError
from rlopt.types import Prompt


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer here."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Deal:
    """A prompt handed to a batch. `epoch` counts how often the data had been gone through before."""

    prompt: Prompt
    epoch: int


class Dealer:
    """Deals prompts: every epoch is a new seeded shuffle of all of them, and batches follow one another through it."""

    def __init__(self, prompts: list[Prompt], per_step: int, seed: int) -> None:
        self._prompts, self._per_step, self._seed = prompts, per_step, seed

    def batch(self, number: int) -> list[Deal]:
        """The prompts of batch `number` (1-based)."""
        first = (number - 1) * self._per_step
        return [self._deal(position) for position in range(first, first + self._per_step)]

    def _deal(self, position: int) -> Deal:
        epoch, row = divmod(position, len(self._prompts))
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return Deal(self._prompts[order[row]], epoch)


def sample_seed(run_seed: int, prompt_id: str, epoch: int, index: int) -> int:
    """The seed of one sample: 63 bits of a hash, so that scheduling cannot change what is drawn."""
    key = f"{run_seed}/{prompt_id}/{epoch}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1


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
    path = Path(config.train)
    if not path.is_file():
        raise RloptError(f"data.train={config.train}: no such file; give a JSONL file, or arithmetic for the embedded task")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        where = f"data.train={config.train}: row {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RloptError(f"{where} is not JSON ({error}); want one object a line") from None
        prompt_key = config.prompt_key or next((key for key in ("prompt", "question") if key in row), "prompt")
        answer_key = config.answer_key or "answer"
        for key, setting in ((prompt_key, "data.prompt_key"), (answer_key, "data.answer_key")):
            if not isinstance(row.get(key), str | int | float):
                raise RloptError(f"{where} has no text under {key!r}, only {sorted(row)}; set {setting}")
        rows.append((f"{path.name}:{number}", str(row[prompt_key]), str(row[answer_key])))
    if not rows:
        raise RloptError(f"data.train={config.train}: the file has no rows; put one JSON object with prompt and answer a line")
    return rows
