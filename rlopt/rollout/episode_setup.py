"""What engines need to know to play episodes, checked against the model before they start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
        parser: of their calls; None where there are none.
        generation: the model's `generation_config.json`.
        notes: what people should know, a line each.
    """

    env: EnvConfig
    chat: bool
    tools: list[dict[str, Any]]
    parser: str | None
    generation: Mapping[str, Any]
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
    template, parser = str(getattr(tokenizer, "chat_template", None) or ""), None
    if tools:
        listed = ", ".join(tool["function"]["name"] for tool in tools)
        need(
            words.chat, "env.tools", listed, "the chat template describes tools, and prompts are not conversations (data.chat)"
        )
        need("tools" in template, "env.tools", listed, "the model's chat template knows no tools; use env.fn, or another model")
        parser = parser_name(env.parser, template)
    stop_tokens(tokenizer, env.stop)
    generation = _generation(folder)
    if words.chat:
        dialogue = Dialogue(tokenizer, True, end_tokens(tokenizer, generation))
        said = [{"role": "tool", "name": tools[0]["function"]["name"], "content": "observation"}] if tools else "observation"
        dialogue.rendered(said)
    return EpisodeSetup(env, words.chat, tools, parser, generation, _notes(env, words, tools))


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
