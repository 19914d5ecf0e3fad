#!/usr/bin/env bash
# The figure of arXiv:2509.24203: three algorithms, three seeds, samplers 20 updates stale, 400 steps. About 35 minutes on two cores.
# Interrupted, it goes on where it was. RUNS chooses where the runs go.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/sync20}
for seed in 1 2 3; do
  for algo in grpo rec_oneside_nois red_weight; do
    run=$RUNS/$algo-$seed
    [ -f "$run/checkpoints/step_400/manifest.json" ] && continue
    .venv/bin/python -m rlopt.train +algo=$algo run.name=$algo-$seed run.dir="$run" run.seed=$seed tracking.group=sync20
  done
done
.venv/bin/python -m rlopt.report "$RUNS"/{grpo,rec_oneside_nois,red_weight}-{1,2,3} --out examples/sync20/figure.html
.venv/bin/python examples/sync20/curves.py "$RUNS" examples/sync20/curves.csv
