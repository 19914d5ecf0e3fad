"""Prompts, samples and groups, as they are sampled, stored and drawn."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rlopt.core.errors import Fault, RloptError

Key = tuple[int, int]
"""Of a prompt that is being sampled: (batch, place) in lockstep, (version, number) in asynchronous mode."""


Reference = str | list[Any] | dict[str, Any]
"""The right answer of a row: what counts of a text; or a list or a mapping, as JSON has them, for a reward that reads it."""


def as_text(reference: Reference) -> str:
    """For people, and wherever text alone is kept: a list or a mapping as JSON."""
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt.

    Attributes:
        token_ids: final; nothing downstream tokenizes again.
        text: as its row has it, before template and chat template.
        answer: what counts of the row's answer; empty where the rows have none.
        source: the data set.
        columns: the row's others, for reward functions. Not kept in records and checkpoints: a reward was given before.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str
    answer: Reference
    source: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A turn of the policy in an episode: the tokens `start` to `end` (not included) of a response, and its reward."""

    start: int
    end: int
    reward: float


@dataclass(frozen=True, eq=False)
class Sample:
    """One response of the policy that sampled.

    Attributes:
        prompt_id: of the prompt that it answers.
        token_ids: `[n]` int32, the ids that the engine returned, with those of observations between turns.
        action_mask: `[n]` bool, False on tokens that the policy did not choose (tool or environment text).
        logprobs: `[n]` float32, nats, of the distribution each token was drawn from; 0 where `action_mask` is False.
        versions: `[n]` int32, the version of the weights that sampled each token; -1 where `action_mask` is False.
        text: `token_ids` decoded once, for people and rewards; an episode's turns and observations are marked.
        finish: `stop` when the policy or the environment ended it, `length` when a limit did.
        reward: the total that advantages are made of.
        parts: what the reward function or the environment reported beside the score, by name.
        turns: of an episode, in order; empty where there was no environment.
        episode: numbers of an episode, by name (`environments.episode`); empty as well.
    """

    prompt_id: str
    token_ids: np.ndarray
    action_mask: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    text: str
    finish: Literal["stop", "length"]
    reward: float
    parts: Mapping[str, float]
    turns: tuple[Turn, ...] = ()
    episode: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "action_mask", "logprobs", "versions")}
        if len(set(lengths.values())) != 1 or not lengths["token_ids"]:
            raise RloptError(f"a sample's arrays must have one length of at least 1: {lengths}")
        if not self.action_mask.any():
            raise RloptError("a sample must have a token that the policy sampled: all of its tokens are observations")
        if not np.isfinite(self.logprobs).all():
            raise RloptError(f"Sample.logprobs has a value that is not finite: {self.logprobs}; was the engine broken?")
        if not np.isfinite(self.reward):
            raise RloptError(f"Sample.reward is {self.reward}: a reward function must return a finite number")

    @cached_property
    def version(self) -> int:
        """The oldest version that sampled a token of this sample."""
        return int(self.versions[self.action_mask].min())

    @cached_property
    def newest_version(self) -> int:
        """The newest version that sampled a token of this sample."""
        return int(self.versions[self.action_mask].max())

    @property
    def sampled(self) -> int:
        """How many of its tokens the policy sampled."""
        return int(np.count_nonzero(self.action_mask))


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt and its samples: the unit that is stored, aged and drawn, because advantages are relative to the group.

    Attributes:
        refills: groups without signal that were sampled and thrown away before this one.
        faults: of samples that are not among these because they have no reward.
    """

    prompt: Prompt
    samples: tuple[Sample, ...]
    refills: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for number, sample in enumerate(self.samples):
            if sample.prompt_id != self.prompt.id:
                raise RloptError(
                    f"Group.samples: sample {number} answers prompt {sample.prompt_id}, the group's is {self.prompt.id}; "
                    "advantages are relative to the group, which has one prompt"
                )


@dataclass(frozen=True, eq=False)
class PendingRollouts:
    """Groups that are kept with a checkpoint, by section, and plain facts about them."""

    sections: Mapping[str, list[Group]]
    facts: Mapping[str, Any]

    def joined(self, other: "PendingRollouts") -> "PendingRollouts":
        return PendingRollouts({**self.sections, **other.sections}, {**self.facts, **other.facts})


@dataclass(frozen=True, eq=False)
class Example:
    """A recorded row: a prompt and its answers as token ids, the best first. One to imitate, two to tell apart."""

    prompt: Prompt
    answers: tuple[tuple[int, ...], ...]
