"""Which prompts a batch has: a pure function of seed and batch number.

Because `PromptSampler.rows` depends on nothing else, a resumed run has the same rows, none skipped and none repeated.
"""

import random

from rlopt.core.requests import SampleRequest
from rlopt.core.samples import Prompt


class PromptSampler:
    """Every epoch is a new seeded shuffle of all rows, and batches follow one another through it."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self._count, self._per_step, self._seed = count, per_step, seed
        self._order: tuple[int, list[int]] = (-1, [])  # of the last epoch asked for: a shuffle is not made 16 times a step

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(row, epoch) of every place of batch `batch` (1-based)."""
        first = (batch - 1) * self._per_step
        places = [divmod(position, self._count) for position in range(first, first + self._per_step)]
        return [(self._shuffled(epoch)[place], epoch) for epoch, place in places]

    def requests(self, batch: int, prompts: list[Prompt], refills: int) -> list[SampleRequest]:
        """The prompts of batch `batch`, each with `refills` spares."""
        return [
            SampleRequest(prompts[row], str(epoch), tuple(self._spare(batch, place, i, prompts) for i in range(refills)))
            for place, (row, epoch) in enumerate(self.rows(batch))
        ]

    def _spare(self, batch: int, place: int, number: int, prompts: list[Prompt]) -> SampleRequest:
        draw = f"spare {batch}.{place}.{number}"
        return SampleRequest(prompts[random.Random(f"{self._seed}/{draw}").randrange(self._count)], draw)

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(self._count))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
