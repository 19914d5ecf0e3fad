"""How the prompt of a row becomes token ids: template, chat template, system message."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlopt.config.sections import DataConfig
from rlopt.core.errors import RloptError
from rlopt.data.chat_template import TemplateRefuses, render
from rlopt.data.tokenization import Tokenizer, encode
from rlopt.data.unusable import UnusableRow

Messages = list[dict[str, Any]]
"""As chat templates read them: `role`, `content`, and whatever else a template knows, such as `tool_calls`."""


@dataclass(frozen=True)
class Wording:
    """How the prompt of a row becomes token ids.

    Attributes:
        template: text around a prompt, which stands where it has `{prompt}`; in a conversation, around its last message.
        chat: put it as a conversation, in the words of the tokenizer's chat template.
        system: begins such a conversation that does not begin with a system message of its own.
        tools: of a row that has none of its own, as chat templates read them.
        preamble: begins every conversation's system message: tools in words, where the chat template knows none.
    """

    tokenizer: Tokenizer
    template: str | None
    chat: bool
    system: str | None
    tools: Sequence[Mapping[str, Any]] = ()
    preamble: str | None = None

    def ids(self, question: str | Messages, tools: Any = None) -> tuple[int, ...]:
        """Token ids of a row's prompt; `tools` as chat templates read them.

        A conversation that ends with the assistant is continued.

        Raises:
            Unusable: the chat template refuses it, or would leave something of it out.
        """
        tools = tools or list(self.tools)
        if not self.chat:
            return tuple(
                encode(self.tokenizer, self._within(question) if isinstance(question, str) else self._plainly(question, tools))
            )
        messages = self._put([{"role": "user", "content": question}] if isinstance(question, str) else question)
        if self.preamble:
            messages = _begun_with(self.preamble, messages)
        self._check_template(messages, tools)
        begun = messages[-1]["role"] == "assistant"
        options: dict[str, Any] = {"continue_final_message": True} if begun else {}
        options |= {"tools": tools} if tools else {}
        try:
            text = render(self.tokenizer, messages, add_generation_prompt=not begun, **options)
        except TemplateRefuses as error:
            raise UnusableRow(f"the tokenizer's chat template refuses it ({error})") from None
        if begun and not (messages[-1].get("content") and text.endswith(messages[-1]["content"])):
            raise UnusableRow("the chat template does not end with the assistant's message, so it cannot be continued")
        return tuple(encode(self.tokenizer, text, special=False))  # the chat template has written them

    def _within(self, text: str) -> str:
        return self.template.replace("{prompt}", text) if self.template else text

    def _plainly(self, messages: Messages, tools: Any) -> str:
        """A conversation without a chat template: what was said, one after another."""
        more = ["tools"] * bool(tools) + sorted({name for message in messages for name in message} - {"role", "content"})
        if more:
            raise UnusableRow(f"{more[0]} would be lost: prompts are not conversations here (data.chat)")
        return "\n\n".join(content_of(message) for message in self._put(messages))

    def _put(self, messages: Messages) -> Messages:
        """With the template around the user's last message, and the system message."""
        put = list(messages)
        if self.template:
            place = max((i for i, message in enumerate(put) if message["role"] == "user"), default=None)
            if place is None:
                raise UnusableRow("has no user message, which data.template needs")
            put[place] = {**put[place], "content": self._within(content_of(put[place]))}
        if self.system and put[0]["role"] not in ("system", "developer"):
            put.insert(0, {"role": "system", "content": self.system})
        return put

    def _check_template(self, messages: Messages, tools: Any) -> None:
        """Refuse what the chat template does not read: it would be left out silently."""
        template = str(getattr(self.tokenizer, "chat_template", ""))
        more = ["tools"] * bool(tools) + sorted({name for message in messages for name in message} - {"role", "content"})
        for name in more:
            if name not in template:
                raise UnusableRow(f"{name} would be lost: the tokenizer's chat template does not read it")


def _begun_with(preamble: str, messages: Messages) -> Messages:
    """A conversation whose system message begins with a text."""
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{preamble}\n\n{content_of(messages[0])}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": preamble}, *messages]


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
        raise RloptError(f"data.system={config.system!r}: prompts are not conversations here; put it into data.template")
    return Wording(tokenizer, _breaks(config.template), chat, _breaks(config.system))


_LATEX = (
    "abla|atural|e|earrow|eg|eq|eqq|ewline|exists|geq|i|leq|less|gtr|mid|olimits|onumber|ormalsize|ot|otin|parallel|prec|succ|"
    "rightarrow|leftarrow|leftrightarrow|Rightarrow|Leftarrow|sim|subseteq|supseteq|u|vdash|warrow"
)


_BREAK = re.compile(rf"\\n(?!(?:{_LATEX})(?![a-zA-Z]))")
"""A line break as it is typed, but not the beginning of a LaTeX command such as `\\nabla`."""


def _breaks(text: str | None) -> str | None:
    """A text in which a typed `\\n` is a line break, unless it has real ones."""
    return _BREAK.sub("\n", text) if text and "\n" not in text else text


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message; a message may be a call of tools alone."""
    return message.get("content") or ""
