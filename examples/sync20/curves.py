"""Collect what the figure shows from all runs into one CSV: `python curves.py RUNS FILE`."""

import csv
import json
import sys
from pathlib import Path

COLUMNS = ("reward/mean", "actor/kl_k1", "actor/kl_k2", "actor/kl_k3", "actor/entropy", "response_length/mean")
MORE = ("actor/pg_clipfrac", "actor/grad_norm", "offpolicy/lag_max", "offpolicy/ratio_max", "offpolicy/ess", "timing_s/step")

runs, target = Path(sys.argv[1]), Path(sys.argv[2])
with target.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["run", "step", *COLUMNS, *MORE])
    for run in sorted(path.parent for path in runs.glob("*/metrics.jsonl")):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            values = [f"{row[name]:.5g}" if row[name] is not None else "" for name in (*COLUMNS, *MORE)]
            writer.writerow([run.name, row["step"], *values])
