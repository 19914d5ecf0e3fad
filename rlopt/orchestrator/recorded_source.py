"""Recorded rows as a `loop.Source`: chosen by a pure function of seed and step, scored once by the reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlopt.core.protocols import Learners
from rlopt.core.samples import Example, PendingRollouts
from rlopt.core.table import SequenceTable
from rlopt.data.collate import tabulate_examples
from rlopt.data.prompt_sampler import PromptSampler
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.credit import compute_advantages
from rlopt.orchestrator.loop import StepData

CHUNK = 512
"""How many rows the reference scores in one call."""

MEASURED = ("preference/", "actor/pg_loss")
"""The metrics of held-out rows, reported as `eval/...`."""


class References:
    """The reference's log-probabilities of recorded rows, `[n]` for the tokens of each answer.

    They are computed for all rows at once, in the order of the files: a row's numbers then do not depend on the batch it first
    occurs in, and a resumed run has the same.
    """

    def __init__(self, reference: Callable[[SequenceTable], Tensor], progress: Callable[[int, int], None]) -> None:
        """`reference` gives log-probabilities `[B, T]`; `progress(rows, of rows)` is called as they are scored."""
        self._reference, self._progress = reference, progress
        self._kept: dict[str, list[Tensor]] = {}

    def score(self, examples: list[Example]) -> None:
        """Score every row of `examples`."""
        once = list({example.prompt.id: example for example in examples}.values())  # the held-out file may be the training file
        for start in range(0, len(once), CHUNK):
            chunk = once[start : start + CHUNK]
            sequences = tabulate_examples(chunk)
            scores = self._reference(sequences)
            for row, (group, answer) in enumerate(zip(sequences.group.tolist(), _answers(sequences), strict=True)):
                self._kept.setdefault(chunk[group].prompt.id, []).append(scores[row, answer].clone())
            self._progress(start + len(chunk), len(once))

    def of(self, examples: list[Example], sequences: SequenceTable) -> Tensor:
        """`[B, T]` for the answers of `examples`, padded; 0 on the prompts."""
        filled = torch.zeros(sequences.shape)
        kept = [values for example in examples for values in self._kept[example.prompt.id]]
        for row, (answer, values) in enumerate(zip(_answers(sequences), kept, strict=True)):
            filled[row, answer] = values
        return filled


def _answers(sequences: SequenceTable) -> list[slice]:
    """Where in each sequence its answer is."""
    starts = map(len, sequences.prompts)
    return [slice(start, start + len(answer)) for start, answer in zip(starts, sequences.responses, strict=True)]


@dataclass(frozen=True)
class RecordedSource:
    """Rows of a file, every epoch in a new order; `held_out` rows are measured every `eval_every` steps and at the last."""

    examples: list[Example]
    held_out: list[Example]
    prompt_sampler: PromptSampler
    references: References
    learners: Learners
    objective: Objective
    terms: LossTerms
    eval_every: int
    total_steps: int

    def open(self, step: int) -> None:
        self.references.score(self.examples + self.held_out)

    def take(self, step: int) -> StepData:
        places = self.prompt_sampler.rows(step)
        examples = [self.examples[row] for row, _ in places]
        sequences = tabulate_examples(examples)
        return StepData(sequences, lambda: self.references.of(examples, sequences), _metrics(sequences, places[-1][1]), [])

    def learned(self, step: int) -> dict[str, float]:
        return {}

    def measure(self, step: int) -> dict[str, float]:
        if not self.held_out or (step % self.eval_every and step < self.total_steps):
            return {}
        sequences = tabulate_examples(self.held_out)
        reference = self.references.of(self.held_out, sequences)
        (update,) = compute_advantages(sequences, None, reference, self.objective, self.terms)
        measured = self.learners.measure(update)
        return {f"eval/{name}": value for name, value in measured.items() if name.startswith(MEASURED)}

    def pending(self, step: int) -> PendingRollouts:
        return PendingRollouts({}, {})


def _metrics(sequences: SequenceTable, epoch: int) -> Mapping[str, float]:
    lengths = sequences.sampled
    return {
        "data/epoch": float(epoch),
        "response_length/mean": lengths.mean().item(),
        "response_length/min": lengths.min().item(),
        "response_length/max": lengths.max().item(),
    }
