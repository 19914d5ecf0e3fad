"""Seconds from `rlopt.submit` to the first learner step: `python examples/speed/first_step.py http://127.0.0.1:8265 [FOLDER]`.

Of a running Ray cluster, its head started with `RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1`, one job after
another; the first one also unpacks rlopt there.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

JOBS = 3
OVERRIDES = ["+algo=grpo", "trainer.total_steps=1", "trainer.save_every=0", "tracking.wandb=disabled"]


def submit(address: str, run: Path) -> dict[str, float]:
    """Seconds since the command was entered, by what had come about."""
    line = [sys.executable, "-m", "rlopt.submit", "--address", address, "--wait", "--", *OVERRIDES, f"run.dir={run}"]
    began, times = time.time(), dict[str, float]()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in process.stdout:
            times.setdefault("job accepted", time.time() - began)
    if process.returncode:
        sys.exit(process.returncode)
    events = {(event := json.loads(text))["event"]: event["time"] for text in (run / "events.jsonl").read_text().splitlines()}
    return times | {"engine and learner up": events["start"] - began, "first step made": _made(run) - began}


def _made(run: Path) -> float:
    """The last time that metrics were written to: there is one step."""
    return (run / "metrics.jsonl").stat().st_mtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="of the cluster's head, such as http://127.0.0.1:8265")
    parser.add_argument("folder", type=Path, nargs="?", default="runs/first_step", help="runs/first_step without it")
    asked = parser.parse_args()
    found = [submit(asked.address, asked.folder.resolve() / str(number)) for number in range(JOBS)]
    table = Table(title="seconds since rlopt.submit was entered", title_justify="left")
    for column in ("job", *found[0]):
        table.add_column(column, justify="right")
    for number, times in enumerate(found):
        table.add_row("cold" if not number else f"warm {number}", *(f"{value:.1f}" for value in times.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
