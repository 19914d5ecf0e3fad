"""Episodes whose environments take their time: `python waits.py FOLDER` trains three steps of 64 of them.

It prints what waiting cost.
Every observation takes 0 to 5 seconds, as a hash of the row, the turn and what was said decides. Episodes wait side by side.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST_S, TURNS, EPISODES, STEPS = 5.0, 3, 64, 3


class Waiting:
    """Begins the next line of a worked solution after each line, slowly."""

    def reset(self, row: Mapping[str, Any]) -> None:
        self._row, self._turn = row, 0

    def step(self, action: str) -> tuple[str | None, bool, float]:
        self._turn += 1
        key = hashlib.blake2b(f"{self._row['prompt']}{self._turn}{action}".encode(), digest_size=4).digest()
        time.sleep(LONGEST_S * int.from_bytes(key) / 2**32)
        if action.endswith("\n") and self._turn < TURNS:
            return f"Step {self._turn + 1}: ", False, 0.0
        return None, True, float(action == f"Answer: {self._row['answer']}")


def main(folder: Path) -> None:
    """Run it, and compare."""
    keys = ["+algo=grpo", "data.prompts_per_step=8", f"algo.group_size={EPISODES // 8}", f"trainer.total_steps={STEPS}"]
    keys += [f"env.fn={Path(__file__).resolve()}:Waiting", 'env.stop=["\\n"]', f"env.max_turns={TURNS}", "run.record=true"]
    keys += ["sync.interval=1", "tracking.wandb=disabled", "trainer.save_every=0", f"run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "rlopt.train", *keys], check=True, stdin=subprocess.DEVNULL)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        waits, took = row["env/seconds"] * EPISODES, row["timing_s/wait_rollout"]
        idle = f", engine idle {row['idle/rollout_frac']:.0%}" if "idle/rollout_frac" in row else ""
        together = f"{waits / took:.0f} at a time{idle}"
        print(f"step {row['step']}: {EPISODES} episodes waited {waits:.0f} s in all and took {took:.1f} s, {together}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
