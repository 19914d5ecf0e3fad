"""What the readers of rows need of a tokenizer."""

import hashlib
import json
from typing import Any, Literal, Protocol

from rlopt.data.unusable import UnusableRow, need_characters


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer here, with the number of tokens that its model knows, where that is known."""

    eos_token_id: int
    rlopt_known: int | None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def apply_chat_template(
        self, conversation: Any, *, tokenize: Literal[False], add_generation_prompt: bool, **options: Any
    ) -> str: ...


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """Token ids of a text, with `special` those that the tokenizer puts around it.

    Raises:
        UnusableRow: it is not text; a tokenizer's own error would not say so. Or the tokenizer has a token in it that the model
            has not: one that was added without resizing the model's embeddings.
    """
    need_characters(text)
    ids, known = tokenizer.encode(text, add_special_tokens=special), getattr(tokenizer, "rlopt_known", None)
    if known and ids and max(ids) >= known:
        raise UnusableRow(f"has token {max(ids)}, and the model's embeddings have {known} (see resize_token_embeddings)")
    return ids


def append_eos(ids: list[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """An answer's ids with the end token, once."""
    return tuple(ids) if ids[-1:] == [tokenizer.eos_token_id] else (*ids, tokenizer.eos_token_id)


def fingerprint(tokenizer: Any) -> str:
    """A hash of the vocabulary: tokenizers whose ids mean different things differ in it."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(vocabulary.encode(), digest_size=8).hexdigest()
