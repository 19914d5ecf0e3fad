"""Recorded rows as a `loop.Source`: chosen by a pure function of seed and step, scored by the reference when first needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlopt.core.protocols import Learners
from rlopt.core.samples import Example, PendingRollouts
from rlopt.core.table import SequenceTable
from rlopt.data.collate import tabulate_examples
from rlopt.data.prompt_sampler import PromptSampler
from rlopt.data.reference_scores import ReferenceScores, row_key
from rlopt.objectives.core import LossTerms, Objective
from rlopt.objectives.credit import compute_advantages
from rlopt.orchestrator.loop import StepData

CHUNK = 512
"""How many rows the reference scores in one call."""

MEASURED = ("preference/", "actor/pg_loss")
"""The metrics of held-out rows, reported as `eval/...`."""


class References:
    """The reference's log-probabilities of recorded rows, `[n]` for the tokens of each answer.

    A row is scored when it is first needed, together with the rows of its batch that were not yet. Rounding depends on that
    batch, so what was scored is kept with the run: one that is resumed has the same numbers.
    """

    def __init__(self, reference: Callable[[SequenceTable], Tensor], kept: ReferenceScores, say: Callable[[str], None]) -> None:
        """`reference` gives log-probabilities `[B, T]`; `say` shows how far it is with many rows."""
        self._reference, self._kept, self._say = reference, kept, say

    def of(self, examples: list[Example], sequences: SequenceTable) -> Tensor:
        """`[B, T]` for the answers of `examples`, padded; 0 on the prompts."""
        keys = [row_key(example) for example in examples]
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in self._kept}
        for start in range(0, len(missing), CHUNK):
            if len(missing) > CHUNK:
                self._say(f"reference: row {start} of {len(missing)}")
            self._score(dict(list(missing.items())[start : start + CHUNK]))
        filled = torch.zeros(sequences.shape)
        kept = [values for key in keys for values in self._kept[key]]
        for row, (answer, values) in enumerate(zip(_answers(sequences), kept, strict=True)):
            filled[row, answer] = torch.from_numpy(values)
        return filled

    def _score(self, rows: dict[str, Example]) -> None:
        sequences, keys = tabulate_examples(list(rows.values())), list(rows)
        scores, found = self._reference(sequences), dict[str, list[np.ndarray]]()
        for row, (group, answer) in enumerate(zip(sequences.group.tolist(), _answers(sequences), strict=True)):
            found.setdefault(keys[group], []).append(scores[row, answer].numpy().copy())
        self._kept.add(found)


def _answers(sequences: SequenceTable) -> list[slice]:
    """Where in each sequence its answer is."""
    starts = map(len, sequences.prompts)
    return [slice(start, start + len(answer)) for start, answer in zip(starts, sequences.responses, strict=True)]


@dataclass(frozen=True)
class RecordedSource:
    """Rows of a file, every epoch in a new order; `held_out` rows are measured every `eval_every` steps and at the last.

    `references` is None where the objective needs no reference.
    """

    examples: list[Example]
    held_out: list[Example]
    prompt_sampler: PromptSampler
    references: References | None
    learners: Learners
    objective: Objective
    terms: LossTerms
    eval_every: int
    total_steps: int

    def open(self, step: int) -> None:
        pass

    def take(self, step: int) -> StepData:
        places = self.prompt_sampler.rows(step)
        examples = [self.examples[row] for row, _ in places]
        sequences = tabulate_examples(examples)
        return StepData(sequences, lambda: self._reference(examples, sequences), _metrics(sequences, places[-1][1]), [])

    def learned(self, step: int) -> dict[str, float]:
        return {}

    def measure(self, step: int) -> dict[str, float]:
        if not self.held_out or (step % self.eval_every and step < self.total_steps):
            return {}
        sequences = tabulate_examples(self.held_out)
        reference = self._reference(self.held_out, sequences) if self.references else None
        (update,) = compute_advantages(sequences, None, reference, self.objective, self.terms)
        measured = self.learners.measure(update)
        return {f"eval/{name}": value for name, value in measured.items() if name.startswith(MEASURED)}

    def pending(self, step: int) -> PendingRollouts:
        return PendingRollouts({}, {})

    def _reference(self, examples: list[Example], sequences: SequenceTable) -> Tensor:
        assert self.references, "the loop asks for no reference where there is none"
        return self.references.of(examples, sequences)


def _metrics(sequences: SequenceTable, epoch: int) -> Mapping[str, float]:
    lengths = sequences.sampled
    return {
        "data/epoch": float(epoch),
        "response_length/mean": lengths.mean().item(),
        "response_length/min": lengths.min().item(),
        "response_length/max": lengths.max().item(),
    }
