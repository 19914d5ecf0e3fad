"""What stands between two turns of the policy, as token ids: nothing of what was sampled is tokenized again."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rlopt.core.errors import RloptError
from rlopt.data.chat_template import TemplateRefuses, render
from rlopt.data.tokenization import encode
from rlopt.data.wording import Messages

TURN = "\u241eturn\u241e"
"""Takes the place of a turn when a template is asked what follows one."""


@dataclass(frozen=True)
class Dialogue:
    """Observations in the tokenizer's words.

    Attributes:
        chat: in the words of its chat template; else as plain text.
        ends: the token ids that end a turn.
    """

    tokenizer: Any
    chat: bool
    ends: Collection[int]

    def observation(self, said: str | Messages, last: int) -> list[int]:
        """Token ids of an observation after a turn that ended with the token `last`, up to where the next turn begins.

        In a conversation these are what the template writes after an assistant's message: its end (unless the turn has one),
        the observation, and the beginning of the next assistant's message.

        Raises:
            RloptError: the template refuses it.
        """
        if not self.chat:
            text = said if isinstance(said, str) else "\n".join(message["content"] for message in said)
            return self._after_end(text)
        ids = encode(self.tokenizer, self.rendered(said), special=False)
        if last in self.ends and ids and (ids[0] in self.ends or ids[0] in self.tokenizer.all_special_ids):
            return ids[1:]
        return ids

    def rendered(self, said: str | Messages) -> str:
        """What the template writes after an assistant's message when `said` follows, as text."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        begun = [{"role": "user", "content": "-"}, {"role": "assistant", "content": TURN}]
        roles = ", ".join(sorted({str(message["role"]) for message in messages}))
        try:
            text = render(self.tokenizer, [*begun, *messages], add_generation_prompt=True)
        except TemplateRefuses as error:
            why = " ".join(str(error).split())
            raise RloptError(
                f"model.path: its chat template refuses an observation of the role {roles} ({why}); return another"
            ) from None
        _, turn, after = text.rpartition(TURN)
        if not turn:
            raise RloptError("model.path: its chat template leaves an assistant's message out; use data.chat=never")
        for message in messages:
            if _core(message["content"]) not in after:
                raise RloptError(f"model.path: its chat template leaves out an observation of the role {roles}; return another")
        return after

    def _after_end(self, text: str) -> list[int]:
        """A text as it is tokenized after something: some tokenizers put a space before the first word of a text."""
        end = getattr(self.tokenizer, "eos_token", None)
        ids = encode(self.tokenizer, f"{end}{text}", special=False) if end else []
        return ids[1:] if ids[:1] == [self.tokenizer.eos_token_id] else encode(self.tokenizer, text, special=False)


def rewrites(tokenizer: Any) -> str | None:
    """What a chat template changes in an earlier turn when a message of the user follows; None: nothing."""
    thought = "<think>\nthought\n</think>\n\nanswer"
    begun: list[Mapping[str, str]] = [{"role": "user", "content": "-"}, {"role": "assistant", "content": thought}]
    try:
        text = render(tokenizer, [*begun, {"role": "user", "content": "-"}])
    except TemplateRefuses:  # it knows no such conversation, and `Dialogue.rendered` will say so where that matters
        return None
    if "thought" in text:
        return None
    return "removes what an earlier turn thought"


def end_tokens(tokenizer: Any, generation: Mapping[str, Any]) -> frozenset[int]:
    """The token ids that end a turn: the tokenizer's, and those of the model's `generation_config.json`."""
    more = generation.get("eos_token_id")
    found = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])}
    return frozenset(one for one in found if isinstance(one, int))


def stop_tokens(tokenizer: Any, texts: Collection[str]) -> list[int]:
    """The ids of all tokens that hold one of the texts; a turn ends with them.

    Raises:
        RloptError: no token holds a text.
    """
    if not texts:
        return []
    found, vocabulary = set[int](), [str(tokenizer.decode([number])) for number in range(len(tokenizer))]
    for text in texts:
        holding = {number for number, token in enumerate(vocabulary) if text in token}
        if not holding:
            raise RloptError(
                f"env.stop={text!r}: no token of model.path holds it; give a text that is part of one, or leave it out"
            )
        found |= holding
    return sorted(found)


def _core(text: str) -> str:
    """A part of a text that a template keeps as it is: templates trim texts, and some write them as JSON."""
    return max(re.findall(r"[A-Za-z0-9]+", text), key=len, default="")
