"""The section `env`: what answers the policy between its turns."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlopt.config.bounds import AtLeastOne, Seconds
from rlopt.config.sections import section
from rlopt.core.errors import need

NONE: dict[str, Any] = {
    "options": {},
    "parser": "auto",
    "stop": [],
    "max_turn_tokens": None,
    "episodes": None,
    "reward": "auto",
}
"""Keys that mean nothing without an environment, and their defaults."""


@section
class EnvConfig:
    fn: str | None
    tools: list[str]
    options: dict[str, Any]
    parser: str
    max_turns: AtLeastOne
    max_turn_tokens: Annotated[int | None, Field(ge=1, description="must be at least 1; null: rollout.max_new_tokens")]
    stop: list[Annotated[str, Field(min_length=1, description="has an empty text, which every token ends with")]]
    max_observation_chars: AtLeastOne
    timeout_s: Seconds
    workers: AtLeastOne
    episodes: Annotated[int | None, Field(ge=1, description="must be at least 1; null: rollout.max_num_seqs")]
    reward: Literal["auto", "environment", "function", "sum"]
    rewritten: Literal["keep", "refuse"]
    on_error: Literal["stop", "skip"]

    def __post_init__(self) -> None:
        if not self.used:
            for key, default in NONE.items():
                value = getattr(self, key)
                need(value == default, f"env.{key}", value, "there is no environment; set env.fn or env.tools, or drop it")
        need(self.fn is not None or not self.options, "env.options", self.options, "are of env.fn, which is not set; drop them")

    @property
    def used(self) -> bool:
        """Whether there is an environment: a class, tools, or both."""
        return self.fn is not None or bool(self.tools)

    @property
    def stops(self) -> list[str]:
        """`stop`, in which a line break or a tab that was typed as such is one."""
        return [text.replace("\\n", "\n").replace("\\t", "\t") for text in self.stop]

    @property
    def scores(self) -> Literal["environment", "function", "sum"]:
        """Who gives an episode its reward; `auto` decided."""
        if self.reward == "auto":
            return "environment" if self.fn else "function"
        return self.reward
