"""Calls of tools in what the policy said, read by vLLM's parsers."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from rlopt.core.errors import RloptError
from rlopt.environments.wire import Call

BY_TEMPLATE = (
    ("<function=", "qwen3_coder"),
    ("<|tool_call>", "gemma4"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek_v3"),
    ("functools[", "phi4_mini_json"),
)
"""A text in a chat template, and the parser of its calls; the first that is there counts."""

OPENINGS = ("tool_calls_start_token", "tool_call_start_token", "bot_token")
"""Attributes of parsers that hold the text a call begins with."""

Parse = Callable[[str], list[Call]]


def parser_name(asked: str, template: str) -> str:
    """The name of the parser that `env.parser` asks for; `auto` decided by the chat template.

    Raises:
        RloptError: nothing in the template says how the model calls tools.
    """
    if asked != "auto":
        return asked
    found = next((name for text, name in BY_TEMPLATE if text in template), None)
    if found is None:
        raise RloptError(
            "env.parser=auto: the chat template does not show how tools are called; name one of vLLM's tool parsers"
        )
    return found


def calls_of(name: str, tokenizer: Any, tools: Sequence[dict[str, Any]]) -> Parse:
    """A function from a turn's text, special tokens and all, to its calls.

    Raises:
        RloptError: vLLM has no such parser, or the tokenizer lacks what it needs.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
    from vllm.tool_parsers import ToolParserManager

    logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)  # it logs a traceback for each call that is not JSON
    described = [ChatCompletionToolsParam(**tool) for tool in tools]
    request = ChatCompletionRequest(messages=[{"role": "user", "content": ""}], tools=described, model="")
    try:
        kind = ToolParserManager.get_tool_parser(name)
    except KeyError:
        known = ", ".join(sorted(set(ToolParserManager.lazy_parsers) | set(ToolParserManager.tool_parsers)))
        raise RloptError(f"env.parser={name}: vLLM has no such tool parser; one of {known}") from None
    try:
        parser = kind(tokenizer, described)
    except Exception as error:  # each parser checks the tokenizer in its own way
        raise RloptError(f"env.parser={name}: does not fit model.path ({' '.join(str(error).split())}); name another") from None
    begins = next((value for one in OPENINGS if isinstance(value := getattr(parser, one, None), str) and value), None)

    def parse(text: str) -> list[Call]:
        try:
            said = kind(tokenizer, described).extract_tool_calls(text, request)
        except Exception as error:  # what the policy writes may break any parser
            return [Call("", error=f"not a call ({type(error).__name__}: {error})")]
        if said.tools_called:
            return [_call(one.function.name, one.function.arguments) for one in said.tool_calls]
        if begins and begins in text:
            return [Call("", error=f"what follows {begins} is not a call; want JSON with name and arguments")]
        return []

    return parse


def _call(name: str, arguments: str) -> Call:
    try:
        read = json.loads(arguments)
    except (TypeError, ValueError):
        return Call(name, error=f"{name}: the arguments are not JSON")
    return Call(name, read) if isinstance(read, dict) else Call(name, error=f"{name}: the arguments are not an object")
