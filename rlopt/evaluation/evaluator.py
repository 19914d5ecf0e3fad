"""Held-out prompts answered by the engines: for `rlopt.evaluate`, and between learner steps while samplers continue."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlopt.core.errors import Interrupted, NoEngine
from rlopt.core.requests import SampleRequest, SamplingSpec
from rlopt.core.samples import Group, Key, Prompt
from rlopt.evaluation.pass_at_k import scores
from rlopt.orchestrator.lockstep import Engines

AHEAD = 256
"""How many prompts are requested at a time."""


@dataclass(frozen=True)
class Answers:
    """The answers to one data set with one sampling specification: a group per prompt."""

    name: str
    sampling: SamplingSpec
    groups: list[Group]

    @property
    def unscored(self) -> int:
        """The number of answers without a reward: left out, timed out, or failed."""
        return sum(self.sampling.count - len(group.samples) for group in self.groups)

    def scores(self, right: float) -> dict[str, list[float]]:
        """Values per prompt by metric; `right` is the reward at or above which an answer is right."""
        found = scores(self.groups, self.sampling.count, right)
        if self.sampling.temperature:
            return found
        return {"greedy": found["avg@1"]} if found else {}


@dataclass(frozen=True)
class Evaluator:
    """Asks the engines.

    Attributes:
        sets: prompts by the data set's name.
        sampling_specs: how each is answered.
        right: reward at or above which an answer is right.
        deadline_s: seconds without a single group before it gives up.
        restore_engines: replaces the engines when none is left.
    """

    sets: Mapping[str, list[Prompt]]
    sampling_specs: list[SamplingSpec]
    right: float
    engines: Engines
    deadline_s: float
    restore_engines: Callable[[], None]

    def answers(
        self, progress: Callable[[int], None] = lambda done: None, asked: Callable[[], None] = lambda: None
    ) -> list[Answers]:
        """All answers; `progress` is called with the number of finished groups."""
        wanted = [(name, sampling) for name in self.sets for sampling in self.sampling_specs]
        requests = [SampleRequest(prompt, "eval", sampling=sampling) for name, sampling in wanted for prompt in self.sets[name]]
        groups = iter(self._ask(requests, progress, asked))
        return [Answers(name, sampling, [next(groups) for _ in self.sets[name]]) for name, sampling in wanted]

    def measure(self, asked: Callable[[], None]) -> dict[str, float]:
        """Metrics of all data sets. `asked` is called when everything was requested, so that more requests can follow."""
        metrics: dict[str, float] = {}
        for answers in self.answers(asked=asked):
            count, name, found = answers.sampling.count, f"eval/{answers.name}", answers.scores(self.right)
            for key in ("greedy", f"avg@{count}", f"pass@{count}"):
                if key in found:
                    metrics[f"{name}/{key}"] = float(np.mean(found[key]))
            metrics[f"{name}/unscored"] = metrics.get(f"{name}/unscored", 0.0) + answers.unscored
        return metrics

    def _ask(
        self, requests: list[SampleRequest], progress: Callable[[int], None], all_asked: Callable[[], None]
    ) -> list[Group]:
        """The group of each request, in order."""
        keys: list[Key] = [(-1, number) for number in range(len(requests))]  # keys of samplers are never negative
        found, under_way, asked = dict[Key, Group](), set[Key](), 0
        while len(found) < len(requests):
            while asked < len(requests) and len(under_way) < AHEAD:
                self.engines.ask(keys[asked], requests[asked])
                under_way.add(keys[asked])
                asked += 1
                if asked == len(requests):
                    all_asked()
            try:
                if not under_way & self.engines.done.keys():
                    self.engines.wait(self.deadline_s)
            except NoEngine:
                self.restore_engines()
            except Interrupted:
                for key in under_way:  # a checkpoint would keep them, and they are not for learning
                    self.engines.cancel(key)
                raise
            for key in under_way & self.engines.done.keys():
                found[key] = self.engines.take(key)
                under_way.remove(key)
            progress(len(found))
        return [found[key] for key in keys]


def sampling_specs(samples: int, temperature: float, top_p: float, greedy: bool) -> list[SamplingSpec]:
    """The sampling specifications that the keys of `eval` describe."""
    return [SamplingSpec(samples, temperature, top_p)] * bool(samples) + [SamplingSpec(1, 0.0, 1.0)] * greedy


def names(sets: str | list[str]) -> dict[str, str]:
    """Data sets by the short names that metrics use."""
    listed = [sets] if isinstance(sets, str) else sets
    short = [Path(name).stem if "." in Path(name).name else Path(name).name for name in listed]
    return {label if short.count(label) == 1 else name: name for label, name in zip(short, listed, strict=True)}
