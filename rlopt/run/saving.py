"""Saving the checkpoints of a run, and the room that they need on disk."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rlopt.config.schema import Config
from rlopt.core.errors import DiskFull, RloptError
from rlopt.core.samples import PendingRollouts
from rlopt.core.supervisor import Loss, Supervisor
from rlopt.models.loading import Shape
from rlopt.orchestrator.decisions import Decisions
from rlopt.orchestrator.progress import Position
from rlopt.run import checkpoint
from rlopt.run.memory import checkpoint_bytes, readable
from rlopt.run.validate import Prepared
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal
from rlopt.weight_sync.synchronizer import score_canaries


class Saving:
    """Writes checkpoints. Where the disk is full it ends the run, or waits for room, as the supervisor says."""

    def __init__(
        self,
        prepared: Prepared,
        workers: RunWorkers,
        journal: Journal,
        supervisor: Supervisor,
        canaries: list[tuple[int, ...]],
        decisions: Decisions | None = None,
    ) -> None:
        self._prepared, self._workers, self._journal, self._supervisor = prepared, workers, journal, supervisor
        self._canaries, self._decisions = canaries, decisions
        start, trainer = prepared.start, prepared.config.trainer
        self._best = checkpoint.Best(start.run, trainer.best, start.state["position"]["step"])
        self._needs: float | None = None  # bytes, while the disk has no room for them

    def asked(self, metrics: Mapping[str, float]) -> bool:
        """Whether the step with these metrics is to be saved: it is the best, or there is room again."""
        return self._best.improved(metrics) or (self._needs is not None and _free(self._prepared.start.run) > self._needs)

    def save(self, position: Position, pending: PendingRollouts) -> bool:
        """Write a checkpoint; whether it was written.

        Raises:
            DiskFull: there is no room, and saving is not to pause; or it is the last step.
        """
        began, config, run = time.monotonic(), self._prepared.config, self._prepared.start.run
        said = [logprobs.tolist() for logprobs in score_canaries(self._workers.learners, self._canaries)]
        canary = {"texts": self._canaries, "logprobs": said}  # by which `rlopt.export` proves itself
        state = self._prepared.start.state
        kept = {"position": asdict(position), "wandb_id": state["wandb_id"], "canary": canary, "row": self._journal.row}
        try:
            keep = config.trainer.keep_checkpoints
            path = checkpoint.save(run, position.step, kept, pending, self._write_model, keep, self._best)
        except DiskFull as full:
            loss = Loss("disk", str(run), str(full), 0.0)
            if self._supervisor.lost(loss, step=position.step) != "pause" or position.step == config.trainer.total_steps:
                raise
            self._needs = checkpoint_bytes(config, self._prepared.model.shape, self._prepared.model.dtype.itemsize)
            return False
        self._needs = None
        self._supervisor.saved()
        if self._decisions:
            self._decisions.saved(position.step)
        facts = {"path": str(path), "seconds": time.monotonic() - began, "sampled_again": len(pending.facts.get("again", []))}
        self._journal.event("checkpoint", step=position.step, **facts)
        return True

    def _write_model(self, folder: Path) -> dict[str, int]:
        written = self._workers.learners.save(folder)
        self._prepared.model.tokenizer.save_pretrained(folder / "hf")
        return written


def check_room(config: Config, shape: Shape, width: int, run: Path) -> None:
    """Refuse to start where the checkpoints will not fit on the disk.

    Raises:
        RloptError: they will not, and `trainer.on_disk_full` says to end then.
    """
    trainer, size = config.trainer, checkpoint_bytes(config, shape, width)
    saved = -(-trainer.total_steps // trainer.save_every) if trainer.save_every else 1
    kept = min(saved, trainer.keep_checkpoints + 1 + bool(trainer.best))  # one more while the next is written
    there = sum(file.stat().st_size for file in run.glob("checkpoints/**/*") if file.is_file())
    free = _free(run)
    if not config.waits_for_room and free + there < kept * size:
        raise RloptError(
            f"run.dir={run}: has {readable(free)} free, and {kept} checkpoint(s) of {readable(size)} will not fit; choose "
            "another disk, lower trainer.keep_checkpoints, or set trainer.on_disk_full=pause"
        )


def _free(run: Path) -> int:
    """Bytes that are free where the run's folder is, or would be."""
    there = next(folder for folder in (run, *run.parents) if folder.is_dir())
    return shutil.disk_usage(there).free
