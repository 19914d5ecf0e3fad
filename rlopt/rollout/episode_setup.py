"""What engines need to know to play episodes, checked against the model before they start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlopt.config.environments import EnvConfig
from rlopt.core.errors import RloptError, need
from rlopt.data.dialogue import Dialogue, end_tokens, rewrites, stop_tokens
from rlopt.data.wording import Wording
from rlopt.environments.load import schemas
from rlopt.rollout.tool_calls import parser_name


@dataclass(frozen=True)
class EpisodeSetup:
    """The section `env`, whether prompts are conversations, and what follows from the model.

    Attributes:
        tools: as the chat template reads them.
        preamble: the tools in words, where the chat template knows none.
        parser: of their calls; None where there are none.
        generation: the model's `generation_config.json`.
        stops: token ids that end a turn beside the end token (`env.stop`).
        notes: what people should know, a line each.
    """

    env: EnvConfig
    chat: bool
    tools: list[dict[str, Any]]
    preamble: str | None
    parser: str | None
    generation: Mapping[str, Any]
    stops: list[int]
    notes: tuple[str, ...]

    @property
    def about(self) -> str:
        """One line for people."""
        env, tools = self.env, ", ".join(tool["function"]["name"] for tool in self.tools)
        what = [env.fn] if env.fn else []
        what += [f"tools {tools} (calls as {self.parser} writes them)"] if self.tools else []
        score = {"environment": "scored by itself", "function": "scored by reward.fn", "sum": "scored by itself and reward.fn"}
        return f"{' with '.join(what)}, at most {env.max_turns} turns, {score[env.scores]}"


def prepare(env: EnvConfig, words: Wording, folder: Path) -> EpisodeSetup | None:
    """What the section asks for with this model; None where there is no environment.

    Args:
        words: how prompts become token ids here.
        folder: of the model.

    Raises:
        RloptError: the class or a tool cannot be imported or described, or does not fit the chat template.
    """
    if not env.used:
        return None
    tools, tokenizer = schemas(env), words.tokenizer
    template, parser, preamble = str(getattr(tokenizer, "chat_template", None) or ""), None, None
    if tools:
        listed = ", ".join(tool["function"]["name"] for tool in tools)
        need(
            words.chat, "env.tools", listed, "the chat template describes tools, and prompts are not conversations (data.chat)"
        )
        if "tools" not in template:
            preamble, template = described(tools), HERMES
        parser = parser_name(env.parser, template)
    stops = stop_tokens(tokenizer, env.stops)
    generation = _generation(folder)
    if words.chat:
        dialogue = Dialogue(tokenizer, True, end_tokens(tokenizer, generation))
        said = [{"role": "tool", "name": tools[0]["function"]["name"], "content": "observation"}] if tools else "observation"
        dialogue.rendered(said)
    notes = _notes(env, words, tools)
    notes += ("the chat template knows no tools: a system message describes them",) * bool(preamble)
    return EpisodeSetup(env, words.chat, tools, preamble, parser, generation, stops, notes)


HERMES = """You may call functions. They are described within <tools></tools>:
<tools>
{tools}
</tools>
To call one, write its name and arguments as JSON within <tool_call></tool_call>, and end your message:
<tool_call>
{{"name": "{name}", "arguments": {arguments}}}
</tool_call>
Its answer is the next message."""
"""Tools in words, in the format of Hermes 2 Pro (Nous Research), which Qwen's models know too."""


def described(tools: list[dict[str, Any]]) -> str:
    """Tools for a model whose chat template does not describe them."""
    first = tools[0]["function"]
    arguments = dict.fromkeys(first["parameters"]["properties"], "...")
    return HERMES.format(tools="\n".join(map(json.dumps, tools)), name=first["name"], arguments=json.dumps(arguments))


def of_episodes(words: Wording, setup: EpisodeSetup | None) -> Wording:
    """`words` with the tools of the episodes: in the chat template's words, or in a system message."""
    if setup is None:
        return words
    return replace(words, tools=() if setup.preamble else setup.tools, preamble=setup.preamble)


def _notes(env: EnvConfig, words: Wording, tools: list[dict[str, Any]]) -> tuple[str, ...]:
    why = rewrites(words.tokenizer) if words.chat and env.max_turns > 1 else None
    if why is None:
        return ()
    if env.rewritten == "refuse":
        raise RloptError(f"env.rewritten=refuse: the chat template {why} when the user speaks again; keep, or env.max_turns=1")
    where = "" if tools and not env.fn else " when the user speaks again"
    return (f"the chat template {why}{where}; here a turn stays as it was sampled (env.rewritten)",)


def _generation(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
