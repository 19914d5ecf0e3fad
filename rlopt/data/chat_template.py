"""Chat templates are programs that come with a model: they may not end, take all memory, or raise anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlopt.core.deadline import at_most
from rlopt.core.errors import RloptError

TEMPLATE_S, TEMPLATE_BYTES = 20.0, 4 * 2**30
"""Seconds that a chat template may take for a conversation, and memory."""


class TemplateRefuses(Exception):
    """A chat template raised something: it does not know such a conversation."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A conversation in the words of the tokenizer's chat template; `options` as `apply_chat_template` has them.

    Raises:
        RloptError: it takes too long, or too much memory. (Both are seen in the main thread alone.)
        TemplateRefuses: it raised anything else.
    """
    try:
        with at_most(TEMPLATE_S, TEMPLATE_BYTES):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TimeoutError:
        raise RloptError(
            f"model.path: its chat template does not end in {TEMPLATE_S:.0f} s; use a model with another"
        ) from None
    except MemoryError:
        gib = TEMPLATE_BYTES / 2**30
        raise RloptError(f"model.path: its chat template takes more than {gib:.2g} GiB; use a model with another") from None
    except Exception as error:  # templates are programs, and may raise anything
        raise TemplateRefuses(str(error) or type(error).__name__) from error
