"""What an asynchronous run decided since its last checkpoint: which groups each step learned from.

Which groups are finished when depends on time, so that no second run would decide the same. A run that is interrupted, or
restarted, reads here what it had decided, and learns from the same groups again, in the same order: its numbers are those that
it had.

    {"step": 7, "keys": [[6, 25], [6, 24]], "dropped": [], "metrics": {...}}

and a line for each group; a gzip member per step.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlopt.core.appended import FULL, AppendedFile
from rlopt.core.atomic_write import write_whole
from rlopt.core.samples import Group, Key
from rlopt.data.rollout_log import Damaged, blocks, group_from_json, group_to_json, member

NAME = "decisions.jsonl.gz"


@dataclass(frozen=True)
class Decision:
    """The groups of a step.

    Attributes:
        keys: of the groups, (version at the time of the request, number of the prompt).
        dropped: numbers of prompts that were given up before it.
        metrics: of the sampler, at that step.
    """

    step: int
    keys: list[Key]
    dropped: list[int]
    groups: list[Group]
    metrics: Mapping[str, float]


class Decisions:
    """The file. `ahead` are the decisions of the steps that a resumed run makes again, the next one first."""

    def __init__(self, run: Path, step: int, begins: bool, waits: bool = False) -> None:
        """Read what was decided after `step`; nothing where the run begins.

        Args:
            begins: the run does not go on from a checkpoint of its own folder.
            waits: for room, where the disk is full.
        """
        self._path, self._waits = run / NAME, waits
        self.ahead = deque[Decision](() if begins else self._read(step))
        self._rewrite()

    def add(self, decision: Decision) -> None:
        """Write a new one down, before its step is made."""
        self._file.write(_encoded(decision))

    def saved(self, step: int) -> None:
        """Forget those up to `step`, which a checkpoint has."""
        self.ahead = deque(one for one in self.ahead if one.step > step)
        try:
            self._rewrite()
        except OSError as error:  # those that stay are passed over when they are read
            if error.errno not in FULL or not self._waits:
                raise

    def _rewrite(self) -> None:
        write_whole(self._path, b"".join(map(_encoded, self.ahead)))
        self._file = AppendedFile(self._path, self._waits)

    def _read(self, step: int) -> list[Decision]:
        """The decisions that follow `step` without a gap, up to where the file was cut."""
        found = list[Decision]()
        try:
            for block in blocks(self._path) if self._path.exists() else ():
                decision = _decoded(block.lines)
                if decision.step == step + len(found) + 1:
                    found.append(decision)
        except Damaged:
            pass  # an interruption cut the last one short: its step was not made
        return found


def _encoded(decision: Decision) -> bytes:
    head = {"step": decision.step, "keys": decision.keys, "dropped": decision.dropped, "metrics": decision.metrics}
    return member([head, *(group_to_json(group) for group in decision.groups)])


def _decoded(lines: list[str]) -> Decision:
    head, *rows = map(json.loads, lines)
    keys: list[Key] = [(version, number) for version, number in head["keys"]]
    return Decision(head["step"], keys, head["dropped"], [group_from_json(row) for row in rows], head["metrics"])
