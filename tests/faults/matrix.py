"""What becomes of a run in every fault, in every phase, as a table: `python matrix.py FOLDER [WORD ...]`.

Each row is a real run of 12 steps in which one thing happens once (`stand.py`). A run that ends is given the same command
again, as a user would. Then its numbers are compared with those of a run that nothing happened to: in lockstep all metrics but
times, to the last bit; asynchronously, where no two runs are alike, the number of groups of each step, that no group is there
twice, and that the steps before the fault are as they were, to the last bit. With words only the rows whose names have them all
are run. Rows that the folder has already are not run again.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil

from rlopt.cluster.leftovers import is_marked
from rlopt.data.rollout_log import blocks

HERE = Path(__file__).parent
STEPS = 12
SMALL = ["+algo=grpo", "data.prompts_per_step=4", "algo.group_size=4", "rollout.max_new_tokens=48", "tracking.wandb=disabled"]
SMALL += ["rollout.stall_s=8", "cluster.step_deadline_s=60"]
SMALL += ["data.eval=arithmetic", "eval.limit=4", "eval.samples=1", "eval.greedy=false", "trainer.eval_every=4"]
SHAPES = {
    "lockstep 1+1": ["sync.interval=2"],
    "async 2+1": ["sync.mode=async", "sync.interval=1", "sync.max_lag=4", "rollout.engines=2", "run.record=true"],
    "lockstep 2+2": ["sync.interval=2", "rollout.engines=2", "learner.workers=2", "learner.zero_stage=2"],
    "async 1+2": ["sync.mode=async", "sync.interval=1", "sync.max_lag=4", "learner.workers=2", "run.record=true"],
}
"""How a run samples, its engines and its learner ranks."""
PHASES = ("starting", "sampling", "learning", "syncing", "saving", "evaluating", "ending")
KINDS = {
    **dict.fromkeys(("engine", "learner", "driver"), ("killed", "stopped", "slow")),
    **dict.fromkeys(("scheduler", "reward", "raylet", "gcs_server"), ("killed", "stopped")),
    "disk": ("full",),
    "run folder": ("gone",),
    "clock": ("slow",),
    "shared memory": ("full",),
}
OWN_MEMORY = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m none /dev/shm && exec "$0" "$@"']
"""Before a command that is to have a small shared memory of its own."""
LATEST_S = 300
"""Seconds that a run and its recovery may take."""


@dataclass(frozen=True)
class Row:
    """One fault."""

    victim: str
    kind: str
    phase: str
    shape: str

    def __str__(self) -> str:
        return f"{self.victim} {self.kind} while {self.phase}, {self.shape}"


@dataclass(frozen=True)
class Result:
    """What became of it.

    Attributes:
        outcome: undisturbed, recovered (by itself), continued (by the same command), or failed.
        detected_s: from the fault to the event that names it.
        recovered_s: from the fault to the next step after that.
        equal: the numbers, or where these cannot be, the groups of each step.
        left: processes and files that outlived it by 10 seconds.
        said: the last line on standard error.
    """

    row: Row
    outcome: str
    detected_s: float | None
    recovered_s: float | None
    equal: bool
    left: list[str]
    said: str


def rows() -> list[Row]:
    """All faults; the shapes take turns, so that every kind and every phase meets several."""
    made, shapes = [], list(SHAPES)
    for number, victim in enumerate(KINDS):
        for place, kind in enumerate(KINDS[victim]):
            for turn, phase in enumerate(PHASES):
                if victim in ("scheduler", "reward") and phase in ("starting", "ending"):
                    continue  # they are not there yet, or no longer
                if (victim, kind, phase) == ("run folder", "gone", "starting"):
                    continue  # it is made while a run starts
                made.append(Row(victim, kind, phase, shapes[(number + place + turn) % len(shapes)]))
    return made


def metrics(file: Path) -> list[dict[str, Any]]:
    """What can be compared: all but times, and the events of a fault."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    away = ("timing_s", "perf", "idle", "sync/", "reward/timeout_frac")
    return [{name: value for name, value in json.loads(line).items() if not name.startswith(away)} for line in lines]


def groups(run: Path) -> list[Counter[str]]:
    """The groups of each step, by prompt and tokens."""
    by_step: dict[int, Counter[str]] = {}
    lines = [line for block in blocks(run / "experience.jsonl.gz") for line in block.lines]
    for line in lines[1:]:
        group = json.loads(line)
        tokens = [sample["token_ids"] for sample in group["samples"]]
        by_step.setdefault(group["step"], Counter())[f"{group['prompt']['id']} {tokens}"] += 1
    return [by_step[step] for step in sorted(by_step)]


def nothing_lost_or_doubled(run: Path, before: Path, steps: int) -> bool:
    """Whether every step has four groups, none is there twice, and the steps before the last fault are as they were."""
    found, written, kept = groups(run), metrics(run / "metrics.jsonl"), metrics(before)
    whole = [step.total() for step in found] == [4] * steps and set(sum(found, Counter[str]()).values()) == {1}
    return whole and len(written) == steps and written[: len(kept)] == kept


@contextmanager
def disk(folder: Path, limited: bool) -> Iterator[Path]:
    """A folder for a run; on a small disk of its own if that is to become full."""
    folder.mkdir(parents=True)
    if not limited:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def execute(faults: Sequence[Row], folder: Path, steps: int = STEPS, save_every: int = 4) -> list[Result]:
    """Run with these faults, of one shape, one after another, in `folder / "disk" / "run"`; what became of each.

    Beside the folder is an undisturbed run in lockstep, or one is made there.
    """
    shape, limited = faults[0].shape, any(row.victim == "disk" for row in faults)
    whole = folder if "async" in shape else undisturbed(shape, folder.parent, steps, save_every)
    with disk(folder / "disk", limited) as there:
        run, mark = there / "run", uuid.uuid4().hex
        said_to = {"faults": [(row.victim, row.kind, row.phase) for row in faults], "folder": str(run)}
        (folder / "faults.json").write_text(json.dumps(said_to))
        keys = [*keys_of(shape, steps, save_every), f"run.dir={run}"]
        keys += ["trainer.on_disk_full=pause"] if limited else []
        before, pids = _files(set()), set[int]()
        room = OWN_MEMORY if any(row.victim == "shared memory" for row in faults) else []
        code, said = _run([str(HERE / "stand.py"), str(folder / "faults.json"), *keys], mark, folder, pids, room)
        times = json.loads((folder / "times.json").read_text())
        events = _events(run)
        ended = "failed"
        if code != 0 and (len(said.splitlines()) == 1 or code < 0):
            again, refused = _run(["-m", "rlopt.train", *keys], mark, folder, pids)
            whole_already = f"has made {steps} steps already" in refused  # it ended after its last step
            ended = "continued" if again == 0 or whole_already else "failed"
        left = _left(mark, before, run, pids)
        equal = (code == 0 or ended == "continued") and (
            nothing_lost_or_doubled(run, folder / "before.jsonl", steps)
            if "async" in shape
            else metrics(run / "metrics.jsonl") == metrics(whole / "metrics.jsonl")
        )
        said = (said.splitlines() or [""])[-1].replace(str(folder), "")
        results, struck = [], times["faults"]
        for row, at, until in zip_longest(faults, struck, struck[1:]):
            seen = [e for e in events if at and at < e["time"] < (until or math.inf)]
            lost = [e["time"] - at for e in seen if e["event"].endswith(("_lost", "_failed"))]
            noticed = lost or any(event["event"] == "sync_fault" for event in seen)
            outcome = "no fault" if at is None else ended if code else "recovered" if noticed else "undisturbed"
            later = [made - at for _, made in times["steps"] if lost and made - at > lost[0]]
            found, recovered = (lost or [None])[0], (later or [None])[0]
            results.append(Result(row, outcome, found, recovered, equal, left, said))
        return results


def _run(arguments: list[str], mark: str, folder: Path, pids: set[int], within: Sequence[str] = ()) -> tuple[int, str]:
    """Run a command to its end; its exit code, and what it said on standard error. Its process goes to `pids`."""
    file = folder.parent / f"{folder.name}.err"
    with file.open("w") as errors:
        environment = os.environ | {"RLOPT_TEST_MARK": mark}
        process = subprocess.Popen(
            [*within, sys.executable, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        pids.add(process.pid)
        ends = time.monotonic() + LATEST_S
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.1)
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:  # as a shell's fg does
                time.sleep(3)
                process.send_signal(signal.SIGCONT)
        if process.poll() is None:
            process.kill()
            return 1, f"killed after {LATEST_S} s\n(second line)"
    return process.wait(), file.read_text()


def _events(run: Path) -> list[dict[str, Any]]:
    file = run / "events.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []  # the last one may be cut short by a full disk
    return [json.loads(line) for line in lines]


def _files(pids: set[int]) -> set[str]:
    """Files of these commands outside of their folders, and those in shared memory that nobody named and nobody has open."""
    there = [path for pattern in ("dev/shm/*", "tmp/rlopt-*") for path in Path("/").glob(pattern)]
    mine = [f"-{pid:x}-" for pid in pids]
    left = [path for path in there if "rlopt-" not in path.name or any(name in path.name for name in mine)]
    used = _used() if left else set[int]()
    return {str(path) for path in left if _inode(path) not in used}


def _inode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _used() -> set[int]:
    """The inodes of shared memory that a living process has: of other commands, as those of this one have all ended. Not the
    names: who makes a semaphore has it by another, which is gone.
    """
    lines: list[str] = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended
            lines += maps.read_text().splitlines()
    return {int(line.split()[4]) for line in lines if "/dev/shm/" in line}


def _left(mark: str, before: set[str], run: Path, pids: set[int]) -> list[str]:
    """What is still there ten seconds later."""
    ends, left = time.monotonic() + 10, ["?"]
    while left and time.monotonic() < ends:
        left = [_name(process) for process in psutil.process_iter() if is_marked(process.pid, mark, "RLOPT_TEST_MARK")]
        left += sorted(_files(pids) - before) + [path.name for path in run.glob("checkpoints/.*.partial")]
        time.sleep(0.2)
    return left


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())[:60]
    return "?"


def undisturbed(shape: str, home: Path, steps: int = STEPS, save_every: int = 4) -> Path:
    """A run of this shape that nothing happens to."""
    run = home / f"{shape.replace(' ', '-')}-{steps}" / "run"
    if not run.exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        line = ["-m", "rlopt.train", *keys_of(shape, steps, save_every), f"run.dir={run}"]
        code, said = _run(line, uuid.uuid4().hex, run.parent, set())
        assert code == 0, said
    return run


def keys_of(shape: str, steps: int, save_every: int) -> list[str]:
    """Of a run of this shape."""
    return [*SMALL, *SHAPES[shape], f"trainer.total_steps={steps}", f"trainer.save_every={save_every}"]


def table(results: list[Result]) -> str:
    """Markdown."""

    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    lines = [
        "| fault | while | run | outcome | detected, s | going on, s | equal | left |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        row, left = one.row, ", ".join(one.left) or "nothing"
        lines.append(
            f"| {row.victim} {row.kind} | {row.phase} | {row.shape} | {one.outcome} | {seconds(one.detected_s)} | "
            f"{seconds(one.recovered_s)} | {'yes' if one.equal else 'NO'} | {left} |"
        )
    return "\n".join(lines)


def grid(results: list[Result]) -> str:
    """The same in short: a line for each fault, a column for each phase; the seconds from the fault to the next step."""
    found = {(one.row.victim, one.row.kind, one.row.phase): one for one in results}
    lines = [f"| fault | {' | '.join(PHASES)} |", "|---|" + "---|" * len(PHASES)]
    for victim, kind in dict.fromkeys((one.row.victim, one.row.kind) for one in results):
        cells = [_cell(found.get((victim, kind, phase))) for phase in PHASES]
        lines.append(f"| {victim} {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: Result | None) -> str:
    if one is None:
        return ""
    wrong = "" if one.equal and not one.left else " **not equal**" if not one.equal else " **something left**"
    return one.outcome + (f", {one.recovered_s:.0f} s" if one.recovered_s is not None else "") + wrong


def there_already(file: Path) -> list[Result]:
    """The rows of an interrupted matrix."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Result(**{**kept, "row": Row(**kept["row"])}) for kept in map(json.loads, lines)]


def main(home: Path, words: list[str]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    results = there_already(home / "results.jsonl")
    chosen = [row for row in rows() if all(word in str(row) for word in words)]
    for number, row in enumerate(chosen, 1):
        if row in [result.row for result in results]:
            continue
        began = time.monotonic()
        [result] = execute([row], home / uuid.uuid4().hex[:8])
        results.append(result)
        with (home / "results.jsonl").open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(f"{number}/{len(chosen)} {row}: {result.outcome}, equal {result.equal}, left {result.left}, "
              f"{time.monotonic() - began:.0f} s  {result.said[:200]}", flush=True)  # fmt: skip
        order = {row: place for place, row in enumerate(rows())}
        ordered = sorted(results, key=lambda result: order[result.row])
        (home / "matrix.md").write_text(f"{grid(ordered)}\n\n{table(ordered)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*", metavar="word")
    asked = parser.parse_args()
    main(asked.folder.resolve(), asked.words)
