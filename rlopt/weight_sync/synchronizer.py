"""Bringing the engines to the learner's weights, and verifying what they received and how they score with it.

A version is declared to an engine only when the digests of all tensors that it received are those that were sent. Then engine
and learner score the same canary prompts. An engine that fails either is left paused, is sent everything again, and ends the
run when that does not cure it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from rlopt.core.errors import RloptError
from rlopt.core.protocols import Journal, Learners, Sent
from rlopt.core.requests import EngineLogprobs
from rlopt.core.samples import Example, Prompt
from rlopt.data.collate import tabulate_examples

Heard = Sequence[EngineLogprobs]
"""An engine's log-probabilities of each canary text."""

ATTEMPTS = 3
"""Sendings to an engine before the run ends."""

CANARY_TOKENS = 6
"""The most tokens of a canary: each uses every weight of a dense model, and samplers wait for the scoring."""


class Engines(Protocol):
    """The engines. Documented in `rollout.engine_pool.EnginePool`."""

    @property
    def handles(self) -> Mapping[int, Any]: ...
    @property
    def asleep(self) -> bool: ...
    def join_all(self) -> bool: ...
    def join_loaded(self) -> bool: ...
    def wake(self) -> None: ...
    def resize(self, count: int) -> None: ...
    def assign_orphaned(self) -> None: ...
    def canary(
        self, texts: list[tuple[int, ...]], numbers: list[int]
    ) -> Callable[[], Mapping[int, Sequence[EngineLogprobs]]]: ...
    def end_silent(self) -> None: ...
    def lose(self, number: int, why: str) -> None: ...


def canary_texts(prompts: list[Prompt], count: int) -> list[tuple[int, ...]]:
    """The middles of the first prompts, because templates make their ends alike; at least two tokens."""
    texts = [prompt.token_ids if len(prompt.token_ids) > 1 else prompt.token_ids * 2 for prompt in prompts[:count]]
    starts = [max(0, (len(text) - CANARY_TOKENS) // 2) for text in texts]
    return [text[start : start + CANARY_TOKENS] for text, start in zip(texts, starts, strict=True)]


@dataclass
class Synchronizer:
    """Carries weights to the engines.

    Attributes:
        canaries: texts, as `canary_texts` makes them.
        tolerance: nats.
        wanted: returns how many engines there should be, at every synchronization.
        version: what the engines hold, -1 before the first sync.
    """

    learners: Learners
    engines: Engines
    canaries: list[tuple[int, ...]]
    verify: bool
    tolerance: float
    ranks_per_engine: int
    journal: Journal
    wanted: Callable[[], int]
    version: int = -1
    _connected: frozenset[int] = frozenset()
    _scores: list[Tensor] | None = None  # of the canaries, by the learner, at this sync

    def to(self, version: int) -> dict[str, float]:
        """Bring all engines to `version`, those that have just been started too; metrics of that.

        Raises:
            RloptError: an engine did not get the weights, or differs from the learner, at every attempt.
        """
        started = time.monotonic()
        self._gather_engines()
        sending = self._send_until_sound(version)
        self.version = version
        self.engines.assign_orphaned()
        metrics = {"sync/seconds": sending.seconds, "sync/bytes": sending.bytes, "sync/faults": sending.faults}
        if self.verify:
            metrics |= {"sync/canary_abs_diff": max(sending.gaps.values(), default=0.0), "sync/verified": 1.0}
        metrics["timing_s/sync"] = time.monotonic() - started
        self.journal.event("sync", version=version, engines=sorted(self.engines.handles), **metrics)
        return metrics

    def _gather_engines(self) -> None:
        """Start or close engines as wanted, wake them, take in loaded ones, and connect the learner to all of them."""
        self.engines.resize(self.wanted())
        if self.engines.asleep:
            self.learners.release()
            self.engines.wake()
        if self.engines.handles:
            self.engines.join_loaded()
        else:
            self.engines.join_all()
        if frozenset(self.engines.handles) != self._connected:
            self._connect()

    def _connect(self) -> None:
        self.learners.connect(self.engines.handles, self.ranks_per_engine)
        self._connected = frozenset(self.engines.handles)

    def _send_until_sound(self, version: int) -> "_Sending":
        """Send to all engines, and again to those that did not get the weights or do not score with them."""
        self._scores = None
        seconds, gaps, only = 0.0, dict[int, float](), None
        for attempt in range(1, ATTEMPTS + 1):
            sent = self.learners.sync(version, only, self.engines.end_silent)
            verdict = self._check(version, only, sent)
            seconds, gaps, only = seconds + sent.seconds, gaps | verdict.gaps, sorted(verdict.faults)
            if not only and not (sent.broken and self.engines.handles):
                return _Sending(seconds, sent.bytes, attempt - 1, gaps)
            for number, why in verdict.faults.items():
                self.journal.event("sync_fault", version=version, engine=number, attempt=attempt, why=why)
            if sent.broken and attempt < ATTEMPTS:
                self._connect()
                only = None
        number, why = next(iter((verdict.faults or sent.faults).items()))
        raise RloptError(f"sync of version {version}: engine {number}: {why}; sent {ATTEMPTS} times without success")

    def _check(self, version: int, only: list[int] | None, sent: Sent) -> "_Verdict":
        """What is wrong with the engines `only` (all: None) after a sending, and how far each is from the learner."""
        faults = {number: why for number, why in sent.faults.items() if number not in sent.dead}
        for number in sorted(sent.dead):
            self.engines.lose(number, sent.faults[number])
        meant = [n for n in self.engines.handles if n in self._connected and (only is None or n in only) and n not in faults]
        gaps: dict[int, float] = {}
        if self.verify and meant:
            collect = self.engines.canary(self.canaries, meant)
            scores = self._score()  # while the engines are at it
            for number, answers in collect().items():
                stale = [heard.version for heard in answers if heard.version != version]
                if stale:
                    faults[number] = f"still answers with version {stale[0]}"
                    continue
                gaps[number] = gap = _gap(scores, [heard.logprobs for heard in answers])
                if not gap <= self.tolerance:
                    faults[number] = (
                        f"differs from the learner by {gap:.2e} nats on a canary token, sync.tolerance allows "
                        f"{self.tolerance:.0e}; the weights do not act as they were sent"
                    )
        return _Verdict(faults, gaps)

    def _score(self) -> list[Tensor]:
        """The learner's log-probabilities of the canaries, computed once per synchronization."""
        if self._scores is None:
            self._scores = score_canaries(self.learners, self.canaries)
        return self._scores


def score_canaries(learners: Learners, texts: list[tuple[int, ...]]) -> list[Tensor]:
    """The learner's log-probability of every token of each text after its first, at temperature 1, in nats."""
    rows = tabulate_examples([Example(Prompt("canary", text[:1], "", "", ""), (text[1:],)) for text in texts])
    scores = learners.score_policy(rows, temperature=1.0)
    return [scored[1 : len(text)] for scored, text in zip(scores, texts, strict=True)]


def _gap(scores: list[Tensor], heard: list[np.ndarray]) -> float:
    """The largest difference of a canary token's log-probability between learner and engine, in nats."""
    return max(float(np.abs(mine.numpy() - theirs).max()) for mine, theirs in zip(scores, heard, strict=True))


@dataclass(frozen=True)
class _Verdict:
    """By engine number: why it does not have the weights, and its gap to the learner in nats."""

    faults: Mapping[int, str]
    gaps: dict[int, float]


@dataclass(frozen=True)
class _Sending:
    """The cost of bringing all engines to a version: seconds, bytes of one sending, sendings that failed, gaps in nats."""

    seconds: float
    bytes: int
    faults: int
    gaps: Mapping[int, float]
