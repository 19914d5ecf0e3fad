"""All learner ranks, as the loop sees them."""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlopt.cluster.actors import Workers
from rlopt.config.learners import LearnerConfig
from rlopt.core.atomic_write import write_whole
from rlopt.core.batches import Unit
from rlopt.core.errors import RloptError
from rlopt.core.protocols import Sent
from rlopt.core.reduce import Sum
from rlopt.core.shapes import Tokens
from rlopt.core.table import SequenceTable, Update
from rlopt.data.microbatches import microbatches, partition
from rlopt.learner.worker import Scored
from rlopt.objectives.core import merge


class Learners:
    """All learner ranks. Every call is made on all of them at once and waits for all."""

    def __init__(self, workers: Workers, config: LearnerConfig, unit: Unit, temperature: float) -> None:
        """`unit`: what must stay in one micro-batch (the objective's `traits.unit`)."""
        self._workers, self._token_budget, self._unit = workers, config.tokens_at_once, unit
        self._temperature, self._sharing, self._packed = temperature, config.sequence_parallel, config.packing

    def update(self, updates: list[Update], step: int) -> dict[str, float]:
        """Make each of `updates`, in order; metrics exact over all ranks, sums averaged over updates."""
        parts = []
        for update in updates:
            shares = microbatches(update, self._unit, self._groups, self._token_budget, self._packed)
            parts += self._of_all("update", [(share, step) for share in shares])
        merged = merge(parts).items()
        return {name: metric.value / (len(updates) if isinstance(metric, Sum) else 1) for name, metric in merged}

    def measure(self, update: Update) -> dict[str, float]:
        """The metrics of an update that is not made, exact over all ranks."""
        shares = microbatches(update, self._unit, self._groups, self._token_budget, self._packed)
        parts = self._of_all("measure", [(share,) for share in shares])
        return {name: metric.value for name, metric in merge(parts).items()}

    def score_policy(self, sequences: SequenceTable, temperature: float | None = None) -> Tokens:
        """Log-probabilities `[B, T]` in nats under the policy as it is; 0 where the mask is 0.

        `temperature` divides the logits; None: that of sampling.
        """
        return self._scores("score_policy", sequences, self._temperature if temperature is None else temperature)

    def score_reference(self, sequences: SequenceTable) -> Tokens:
        """Log-probabilities `[B, T]` in nats under the reference, at the temperature of sampling; 0 where the mask is 0."""
        return self._scores("score_reference", sequences, self._temperature)

    def _scores(self, method: str, sequences: SequenceTable, temperature: float) -> Tokens:
        layout = partition(sequences.lengths, torch.arange(len(sequences)), self._groups, self._token_budget, self._packed)
        layout = [[piece or [0] for piece in share] for share in layout]  # ranks must stay in step
        shares = [[sequences.take(piece) for piece in share] for share in layout]
        answers: list[list[Scored]] = self._of_all(method, [(share, temperature) for share in shares])
        scores = torch.zeros(sequences.shape)
        for share, answer in zip(layout, answers, strict=True):
            for piece, values in zip(share, answer, strict=True):
                scores[piece, : values.shape[1]] = torch.tensor(values)
        return scores

    @property
    def _groups(self) -> int:
        """Ranks, or groups of ranks that share their sequences, among which work is split."""
        return len(self._workers) // self._sharing

    def _of_all(self, method: str, arguments: list[Any]) -> list[Any]:
        """Call every rank with the arguments of its group; the answers of each group's first rank, which are those of all."""
        spread = (given for given in arguments for _ in range(self._sharing))
        return self._workers.call(method, *spread)[:: self._sharing]

    def connect(self, engines: Mapping[int, Any], ranks_per_engine: int) -> None:
        """Connect to these engines, actor handles by number, and to no others."""
        way = [engines, ranks_per_engine, self._workers.call("address")[0]]
        self._workers.call("connect", *[way] * len(self._workers))

    def sync(self, version: int, only: list[int] | None, meanwhile: Callable[[], None] = lambda: None) -> Sent:
        """Send the weights as `version` to all engines, or to those numbered in `only`; returns when the last one has them.

        `meanwhile` is called about once a second.
        """

        def check() -> None:
            self._workers.check()
            meanwhile()

        pending = self._workers.start("sync", *([version, only] for _ in range(len(self._workers))))
        pending.check = check
        sent: Sent = pending.result("sync")[0]
        return sent

    def release(self) -> None:
        """Give all GPU memory back that is not needed until the next update."""
        self._workers.call("release")

    def save(self, folder: Path) -> dict[str, int]:
        """Write the learner's part of a checkpoint; all files that any rank's node has of it, with their sizes in bytes."""
        written: list[dict[str, int]] = self._workers.call("save", *([folder] for _ in range(len(self._workers))))
        return {name: size for files in written for name, size in files.items()}

    def check_storage(self, run: Path) -> None:
        """Refuse a run's folder in which not all ranks read what is written here: a checkpoint could not be put together."""
        probe, word = run / ".storage", uuid.uuid4().hex
        write_whole(probe, word)
        try:
            read = self._workers.call("reads", *([probe] for _ in range(len(self._workers))))
        finally:
            probe.unlink()
        if blind := [rank for rank, said in enumerate(read) if said != word]:
            raise RloptError(
                f"run.dir={run}: the node of learner rank {blind[0]} does not have what is written there; give a folder on "
                "storage that all nodes share"
            )

    def load(self, folder: Path) -> None:
        self._workers.call("load", *([folder] for _ in range(len(self._workers))))
