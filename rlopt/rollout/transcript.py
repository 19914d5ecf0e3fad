"""An episode as it is played: turns and observations that become one sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from rlopt.core.samples import Prompt, Sample, Turn
from rlopt.environments.wire import Messages, Observed
from rlopt.rewards.pool import Question

ENVIRONMENT, POLICY = "\n--- environment ---\n", "\n--- policy ---\n"
"""What stands in the text of a sample, for people, before an observation and before the next turn."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """One turn as an engine returned it: ids, log-probabilities (nats), versions, and why it ended."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    finish: str


@dataclass
class Played:
    """An episode so far."""

    prompt: Prompt
    ids: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    versions: list[np.ndarray] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    conversation: Messages = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    length: int = 0

    def hear(self, turn: Spoken, text: str) -> None:
        """Append a turn of the policy."""
        start = self.length
        self._append(turn.token_ids, True, turn.logprobs, turn.versions)
        self.turns.append(Turn(start, self.length, 0.0))
        self.texts.append((POLICY if len(self.turns) > 1 else "") + text)
        self.conversation.append({"role": "assistant", "content": text})

    def answer(self, seen: Observed) -> None:
        """Note what the environment answered to the last turn."""
        if seen.reward is not None:
            self.turns[-1] = replace(self.turns[-1], reward=seen.reward)
        for name, value in seen.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value
        for name, value in (("tool_calls", seen.calls), ("tool_errors", seen.errors), ("cut", seen.cut)):
            self.numbers[name] = self.numbers.get(name, 0.0) + value

    def observe(self, ids: list[int], said: str | Messages) -> None:
        """Append an observation."""
        count = len(ids)
        self._append(np.array(ids, np.int32), False, np.zeros(count, np.float32), np.full(count, -1, np.int32))
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        self.texts.append(ENVIRONMENT + "\n".join(message["content"] for message in messages))
        self.conversation += messages
        self.numbers["observation_tokens"] = self.numbers.get("observation_tokens", 0.0) + count

    def _append(self, ids: np.ndarray, spoken: bool, logprobs: np.ndarray, versions: np.ndarray) -> None:
        self.ids.append(ids)
        self.masks.append(np.full(len(ids), spoken))
        self.logprobs.append(logprobs)
        self.versions.append(versions)
        self.length += len(ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All so far, with the prompt's."""
        return self.prompt.token_ids + tuple(np.concatenate(self.ids).tolist() if self.ids else ())

    def sample(self, reward: float, parts: Mapping[str, float], finish: str) -> Sample:
        return Sample(
            prompt_id=self.prompt.id,
            token_ids=np.concatenate(self.ids).astype(np.int32),
            action_mask=np.concatenate(self.masks),
            logprobs=np.concatenate(self.logprobs),
            versions=np.concatenate(self.versions).astype(np.int32),
            text="".join(self.texts),
            finish="stop" if finish == "done" else "length",
            reward=reward,
            parts=parts,
            turns=tuple(self.turns),
            episode={
                "turns": float(len(self.turns)),
                "ended_by_turns": float(finish == "turns"),
                "ended_by_budget": float(finish == "budget"),
                **self.numbers,
            },
        )


@dataclass(frozen=True)
class Ended:
    """An episode that is over: `finish` is done, turns or budget; `reward` what its environment gave in all."""

    played: Played
    finish: str
    reward: float

    @property
    def prompt(self) -> Prompt:
        return self.played.prompt

    @property
    def question(self) -> Question:
        """For `reward.fn`: the last turn is the completion, and the whole is in the column `conversation`."""
        prompt, played = self.played.prompt, self.played
        columns = {**prompt.columns, "conversation": played.conversation}
        last = next(message["content"] for message in reversed(played.conversation) if message["role"] == "assistant")
        return Question(prompt.text, last, prompt.answer, columns)
