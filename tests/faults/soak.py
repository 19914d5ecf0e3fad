"""`python soak.py FOLDER [STEPS]`: an asynchronous run in which workers are killed again and again, and one that is left alone.

An engine is killed every 30 seconds and the learner rank every 3 minutes. Both runs' rewards and the memory of the processes
that live on, in MiB, go to `soak.json` and `soak.png`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from stand import hook

ENGINE_EVERY_S, RANK_EVERY_S, LOOK_EVERY_S = 30.0, 180.0, 5.0
KEYS = ["+algo=grpo", "data.prompts_per_step=4", "algo.group_size=4", "tracking.wandb=disabled", "trainer.save_every=50"]
KEYS += ["sync.mode=async", "sync.interval=1", "sync.max_lag=4", "trainer.restarts=1000", "learner.lr=1e-4"]


def inside(notes: Path) -> None:
    """The run, with threads that kill its workers and look at its memory."""
    from rlopt.cluster import fork_server
    from rlopt.run.workers import RunWorkers
    from rlopt.train import main

    state: dict[str, Any] = {"workers": None}
    began = time.monotonic()

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
                _note(notes, kind=which, at=time.monotonic() - began)

    def look() -> None:
        while True:
            memory = {"driver": psutil.Process().memory_info().rss / 2**20}
            for pid in fork_server.running:
                memory["fork server"] = psutil.Process(pid).memory_info().rss / 2**20
            files = sum(file.stat().st_size for file in Path("/dev/shm").glob("*rlopt*")) / 2**20
            _note(notes, kind="memory", at=time.monotonic() - began, files=files, **memory)
            time.sleep(LOOK_EVERY_S)

    for target, arguments in ((kill, ("engine", ENGINE_EVERY_S)), (kill, ("learner", RANK_EVERY_S)), (look, ())):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    main()


def _note(notes: Path, **facts: object) -> None:
    with notes.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def rewards(run: Path) -> list[float]:
    """Of every step."""
    return [json.loads(line)["reward/mean"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def smooth(values: list[float], span: int = 50) -> list[float]:
    """The mean of each value and those before it."""
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(span, i + 1) for i in range(len(values))]


def draw(home: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads((home / "soak.json").read_text())
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), constrained_layout=True)
    for name, label in (("alone", "left alone"), ("killed", "workers killed")):
        above.plot(smooth(found[name]), label=label)
    above.set(xlabel="learner step", ylabel="training reward (mean of 50 steps)", title="The same run, with and without faults")
    above.legend()
    for name in ("driver", "fork server"):
        below.plot([one["at"] for one in found["memory"]], [one.get(name) for one in found["memory"]], label=name)
    kills = found["kills"]
    for name, color in (("engine", "tab:grey"), ("learner", "tab:red")):
        for number, at in enumerate(at for kind, at in kills if kind == name):
            below.axvline(at, color=color, alpha=0.4, linewidth=0.8, label=f"{name} killed" if not number else None)
    below.set(xlabel="seconds", ylabel="memory, MiB", ylim=(0, None), title="Memory of what lives on")
    below.legend()
    figure.savefig(home / "soak.png", dpi=110)


def main(home: Path, steps: int) -> None:
    home.mkdir(parents=True, exist_ok=True)
    notes = home / "notes.jsonl"
    for name in ("killed", "alone"):
        line = [str(Path(__file__)), "--inside", str(notes)] if name == "killed" else ["-m", "rlopt.train"]
        keys = [*KEYS, f"trainer.total_steps={steps}", f"run.dir={home / name}"]
        began = time.monotonic()
        subprocess.run([sys.executable, *line, *keys], check=True, stdin=subprocess.DEVNULL)
        print(f"{name}: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)
    rows = [json.loads(line) for line in notes.read_text().splitlines()]
    events = [json.loads(line)["event"] for line in (home / "killed" / "events.jsonl").read_text().splitlines()]
    found = {
        "killed": rewards(home / "killed"),
        "alone": rewards(home / "alone"),
        "memory": [row for row in rows if row["kind"] == "memory"],
        "kills": [[row["kind"], row["at"]] for row in rows if row["kind"] != "memory"],
        "events": {name: events.count(name) for name in sorted(set(events))},
    }
    (home / "soak.json").write_text(json.dumps(found))
    draw(home)
    print(found["events"])


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        where = Path(sys.argv[2])
        del sys.argv[1:3]
        inside(where)
    else:
        main(Path(sys.argv[1]).resolve(), int((*sys.argv, 2000)[2]))
