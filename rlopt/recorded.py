"""Recorded rows as a `loop.Source`: dealt by a pure function of seed and step, scored by the reference once and never again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rlopt.batching import credit, pad_examples
from rlopt.data import Dealer
from rlopt.loop import Drawn
from rlopt.objectives.core import Objective, Terms
from rlopt.types import Batch, Example, Group, Sequences

MEASURED = ("preference/", "actor/pg_loss")
"""What is reported of held-out rows, as `eval/...`."""


class Learners(Protocol):
    """The learner ranks, as far as recorded rows need them. Documented in `learner.Learners`."""

    def score(self, sequences: Sequences, whose: Literal["policy", "reference"]) -> Tensor: ...
    def measure(self, batch: Batch) -> dict[str, float]: ...


class References:
    """The reference's log-probabilities of recorded rows, kept by row: `[n]` of the answer's tokens."""

    def __init__(self, learners: Learners) -> None:
        self._learners = learners
        self._kept: dict[str, list[Tensor]] = {}

    def of(self, examples: list[Example], sequences: Sequences) -> Tensor:
        """`[B, T]` for the padded answers of `examples`."""
        unknown = list({e.prompt.id: e for e in examples if e.prompt.id not in self._kept}.values())
        if unknown:
            asked = pad_examples(unknown)
            scores = self._learners.score(asked, "reference")
            for number, example in enumerate(unknown):
                rows = (asked.group == number).nonzero()[:, 0].tolist()
                self._kept[example.prompt.id] = [scores[row][asked.mask[row] > 0] for row in rows]
        filled = torch.zeros_like(sequences.mask)
        filled[sequences.mask > 0] = torch.cat([values for e in examples for values in self._kept[e.prompt.id]])
        return filled


@dataclass(frozen=True)
class Recorded:
    """Rows of a file, every epoch in a new order; `held_out` rows are measured every `eval_every` steps and at the last."""

    examples: list[Example]
    held_out: list[Example]
    dealer: Dealer
    references: References
    learners: Learners
    objective: Objective
    terms: Terms
    eval_every: int
    total_steps: int

    def open(self, step: int) -> None:
        pass

    def take(self, step: int) -> Drawn:
        places = self.dealer.rows(step)
        examples = [self.examples[row] for row, _ in places]
        sequences = pad_examples(examples)
        return Drawn(sequences, lambda: self.references.of(examples, sequences), _metrics(sequences, places[-1][1]), [])

    def learned(self, step: int) -> dict[str, float]:
        return {}

    def measure(self, step: int) -> dict[str, float]:
        if not self.held_out or (step % self.eval_every and step < self.total_steps):
            return {}
        sequences = pad_examples(self.held_out)
        reference = self.references.of(self.held_out, sequences)
        (batch,) = credit(sequences, sequences.behavior, reference, self.objective, self.terms)
        measured = self.learners.measure(batch)
        return {f"eval/{name}": value for name, value in measured.items() if name.startswith(MEASURED)}

    def buffer(self) -> dict[int, list[Group]]:
        return {}


def _metrics(sequences: Sequences, epoch: int) -> Mapping[str, float]:
    lengths = sequences.mask.sum(1)
    return {
        "data/epoch": float(epoch),
        "response_length/mean": lengths.mean().item(),
        "response_length/min": lengths.min().item(),
        "response_length/max": lengths.max().item(),
    }
