"""An asynchronous run whose workers are killed again and again, and one that is left alone, or one of the two again:
`python soak.py FOLDER [STEPS [killed|alone]]`.

An engine is killed every 30 seconds and the learner rank every 3 minutes. Both runs' rewards and the memory of all their
processes, in MiB, go to `soak.json` and `soak.png`; by how much each process grew from step 200 on is printed.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from stand import hook

INSIDE = "SOAK_NOTES"
"""Environment variable of the process that is the run: where it writes what it sees."""

ENGINE_EVERY_S, RANK_EVERY_S, LOOK_EVERY_S = 30.0, 180.0, 5.0
FLAT_FROM = 200
COLORS = {
    "driver": "tab:blue",
    "fork server": "tab:orange",
    "ray::LearnerWorker": "tab:green",
    "VLLM::EngineCore": "tab:purple",
}
KEYS = ["+algo=grpo", "data.prompts_per_step=4", "algo.group_size=4", "tracking.wandb=disabled", "trainer.save_every=50"]
KEYS += ["sync.mode=async", "sync.interval=1", "sync.max_lag=4", "trainer.restarts=1000", "learner.lr=1e-4"]


def inside(notes: Path, kills: bool) -> None:
    """The run, with threads that kill its workers."""
    from rlopt.run.workers import RunWorkers
    from rlopt.train import main

    state: dict[str, Any] = {"workers": None}

    def up(workers: Any, _: Any) -> None:
        state["workers"] = workers

    def down(_: Any) -> None:
        state["workers"] = None

    hook(RunWorkers, "join", lambda _: None, up)
    hook(RunWorkers, "close", down)

    def kill(which: str, every: float) -> None:
        while True:
            time.sleep(every)
            workers = state["workers"]
            if workers is None:
                continue
            actor = workers._ranks if which == "learner" else next(iter(workers.engines.workers), None)
            for place in actor._known() if actor else []:
                os.kill(place.pid, signal.SIGKILL)
                _note(notes, kind=which, step=_steps(notes.with_suffix("")))

    for which, every in (("engine", ENGINE_EVERY_S), ("learner", RANK_EVERY_S)) if kills else ():
        threading.Thread(target=kill, args=(which, every), daemon=True).start()
    main()


def watch(run: subprocess.Popen[bytes], notes: Path) -> None:
    """Note the memory of the run and of all that it starts until it ends. From outside: looking would make a driver grow."""
    began, driver = time.monotonic(), psutil.Process(run.pid)
    while run.poll() is None:
        files = sum(file.stat().st_size for file in Path("/dev/shm").glob("*rlopt*")) / 2**20
        at, step = time.monotonic() - began, _steps(notes.with_suffix(""))
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            _note(notes, kind="memory", at=at, step=step, files=files, memory=_memory(driver))
        time.sleep(LOOK_EVERY_S)


def _memory(driver: psutil.Process) -> dict[str, float]:
    """Resident memory in MiB of each process of the run, by what it is and its pid."""
    found = {f"driver {driver.pid}": driver.memory_info().rss / 2**20}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            line = process.cmdline()
            title = line[0].split("/")[-1] if line else process.name()
            title = title.partition(".")[0] if title.startswith("ray::") else title  # what follows is the call of the moment
            forks = any("fork_server" in word for word in line)
            name = "fork server" if forks else re.sub(r"[^A-Za-z_:. -]", "", title)[:40].strip()
            found[f"{name} {process.pid}"] = process.memory_info().rss / 2**20
    return found


def _steps(run: Path) -> int:
    """How many are written down."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _note(notes: Path, **facts: object) -> None:
    with notes.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def rewards(run: Path) -> list[float]:
    """Of every step that is written down."""
    if not (run / "metrics.jsonl").exists():
        return []
    return [json.loads(line)["reward/mean"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def smooth(values: list[float], span: int = 50) -> list[float]:
    """The mean of each value and those before it."""
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(span, i + 1) for i in range(len(values))]


def growth(looks: list[dict[str, Any]]) -> dict[str, float]:
    """By how much each process that lives from step 200 to the end grew: its last fifth to its first one, less 1."""
    late = [look["memory"] for look in looks if look["step"] >= FLAT_FROM]
    seen = Counter(name for look in late for name in look)
    found = {}
    for name in (name for name, count in seen.items() if count >= len(late) - 2):  # at the very end some are gone
        values = [look[name] for look in late if name in look]
        fifth = max(1, len(values) // 5)
        found[name] = statistics.fmean(values[-fifth:]) / statistics.fmean(values[:fifth]) - 1
    return found


def draw(home: Path) -> None:
    """`soak.png` from `soak.json`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads((home / "soak.json").read_text())
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 8), constrained_layout=True)
    for name, label in (("alone", "left alone"), ("killed", "workers killed")):
        above.plot(smooth(found[name]["rewards"]), label=label)
        looks = found[name]["looks"]
        for process in growth(looks):
            title = process.rsplit(" ", 1)[0]
            style = {"color": COLORS.get(title, "lightgrey"), "linestyle": "-" if name == "killed" else ":"}
            below.plot([look["step"] for look in looks], [look["memory"].get(process) for look in looks], **style)
    above.set(xlabel="learner step", ylabel="training reward (mean of 50 steps)", title="The same run, with and without faults")
    above.legend()
    for title, color in COLORS.items():
        below.plot([], [], color=color, label=title)
    below.plot([], [], color="lightgrey", label="another process")
    below.plot([], [], color="black", linestyle=":", label="left alone")
    for kind, color in (("engine", "tab:grey"), ("learner", "tab:red")):
        steps = [step for which, step in found["killed"]["kills"] if which == kind]
        for number, step in enumerate(steps):
            below.axvline(step, color=color, alpha=0.3, linewidth=0.7, label=f"{kind} killed" if not number else None)
    below.set(
        xlabel="learner step", ylabel="resident memory, MiB", title="Memory of each process that lives from step 200 to the end"
    )
    below.set_ylim(0, 1.3 * below.get_ylim()[1])  # room for the legend
    below.legend(ncols=3, fontsize=8)
    figure.savefig(home / "soak.png", dpi=110)


def main(home: Path, steps: int, names: Sequence[str]) -> None:
    """Runs of these names, and what they tell."""
    home.mkdir(parents=True, exist_ok=True)
    kept = home / "soak.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in names:
        notes = home / f"{name}.jsonl"
        keys = [*KEYS, f"trainer.total_steps={steps}", f"run.dir={home / name}"]
        began = time.monotonic()
        env = os.environ | {INSIDE: str(notes)}
        run = subprocess.Popen([sys.executable, __file__, *keys], stdin=subprocess.DEVNULL, env=env)
        watch(run, notes)
        if run.wait():
            raise SystemExit(run.returncode)
        print(f"{name}: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        rows = [json.loads(line) for line in notes.read_text().splitlines()]
        events = [json.loads(line)["event"] for line in (home / name / "events.jsonl").read_text().splitlines()]
        found[name] = {
            "rewards": rewards(home / name),
            "looks": [row for row in rows if row["kind"] == "memory"],
            "kills": [[row["kind"], row["step"]] for row in rows if row["kind"] != "memory"],
            "events": {event: events.count(event) for event in sorted(set(events))},
        }
        kept.write_text(json.dumps(found))
        late = found[name]["rewards"][-200:]
        print(f"  events {found[name]['events']}, kills {len(found[name]['kills'])}")
        print(f"  reward of the last 200 steps {statistics.fmean(late):.3f}")
        for process, grown in growth(found[name]["looks"]).items():
            print(f"  {process}: {100 * grown:+.1f}% from step {FLAT_FROM} on")
    if lacking := {"killed", "alone"} - found.keys():
        print(f"no figure yet: it shows both runs, and {lacking.pop()} is still to be made in this folder")
    else:
        draw(home)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int, nargs="?", default=2000)
    parser.add_argument("which", nargs="?", choices=("killed", "alone"), help="both without it")
    return parser.parse_args()


if __name__ == "__main__":
    if notes := os.environ.pop(INSIDE, ""):
        inside(Path(notes), kills=Path(notes).stem == "killed")
    else:
        given = asked()
        main(given.folder.resolve(), given.steps, [given.which] if given.which else ("killed", "alone"))
