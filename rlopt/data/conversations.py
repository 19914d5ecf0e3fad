"""Recorded rows as other tools write them, in the columns that `preferences` reads.

    {"messages": [..., {"role": "assistant", ...}]}               prompt, completion
    {"conversations": [{"from": "human", "value": ...}, ...]}     prompt, completion (ShareGPT)
    {"chosen": [user, assistant], "rejected": [user, assistant]}  prompt, chosen, rejected (TRL, whose prompt is in both)

A prompt is all messages but the last, which must be the assistant's.
"""

from collections.abc import Mapping
from typing import Any

from rlopt.data.unusable import UnusableRow
from rlopt.data.wording import Messages

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
ROLES |= {"system": "system", "tool": "tool", "function": "tool", "observation": "tool"}
"""Who speaks, as ShareGPT and its like name them, to the role."""


def regular(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its prompt, and its answer or answers, in columns of their own; as it is, where they are.

    Raises:
        UnusableRow: a conversation ends with somebody else, or two of them do not differ in their last message alone.
    """
    if _is_long(row.get("chosen")) and _is_long(row.get("rejected")):
        return {**row, **_pair(row, row["chosen"], row["rejected"])}
    key = next((key for key in ("messages", "conversations") if isinstance(row.get(key), list)), None)
    if key is None or any(column in row for column in ("completion", "response", "answer", "chosen")):
        return dict(row)
    messages = _messages(key, row[key])
    if not messages:
        raise UnusableRow(f"{key} is empty")
    if messages[-1]["role"] != "assistant":
        raise UnusableRow(f"{key} does not end with the assistant")
    if len(messages) == 1:
        raise UnusableRow(f"{key} has nothing before the assistant's message")
    return {**row, "prompt": messages[:-1], "completion": messages[-1:]}


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _messages(key: str, value: list[Any]) -> Messages:
    if not all(isinstance(one, dict) and isinstance(one.get("role", one.get("from")), str) for one in value):
        raise UnusableRow(f"{key} is a list, but not of messages with role and content")
    return [one if "role" in one else _of_sharegpt(key, one) for one in value]


def _of_sharegpt(key: str, message: dict[str, Any]) -> dict[str, Any]:
    if message["from"] not in ROLES:
        raise UnusableRow(f"{key} has a message from {message['from']!r}; roles are {', '.join(ROLES)}")
    return {"role": ROLES[message["from"]], "content": message.get("value")}


def _pair(row: Mapping[str, Any], chosen: list[Any], rejected: list[Any]) -> dict[str, Messages]:
    sides = _messages("chosen", chosen), _messages("rejected", rejected)
    most = min(map(len, sides)) - 1
    common = next((place for place in range(most) if sides[0][place] != sides[1][place]), most)
    if not common:
        raise UnusableRow("chosen and rejected have no message in common, which would be their prompt")
    for key, messages in zip(("chosen", "rejected"), sides, strict=True):
        if len(messages) != common + 1:
            raise UnusableRow("chosen and rejected differ before their last message")
        if messages[-1]["role"] != "assistant":
            raise UnusableRow(f"{key} does not end with the assistant")
    before, prompt = sides[0][:common], row.get("prompt")
    asked = before[-len(prompt) :] if isinstance(prompt, list) else [message.get("content") for message in before]
    if prompt and prompt != asked and prompt not in asked:
        raise UnusableRow("chosen and rejected answer something else than prompt")
    return {"prompt": before, "chosen": sides[0][common:], "rejected": sides[1][common:]}
