#!/usr/bin/env bash
# Every group-relative algorithm as its YAML has it, samplers 20 updates stale, 200 steps, three seeds: about four hours on two
# cores. Interrupted, it goes on where it was. RUNS chooses where the runs go.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/family}
mkdir -p "$RUNS"
PYTHON=${PYTHON:-.venv/bin/python}
for seed in 1 2 3; do
  for file in $(grep -l _group_relative@ conf/algo/*.yaml); do
    algo=$(basename "$file" .yaml)
    run=$RUNS/$algo-$seed
    [ -f "$run/checkpoints/step_200/manifest.json" ] && continue
    # A run that is refused or collapses into numbers that are not finite is a result too: note it and go on.
    $PYTHON -m rlopt.train +algo="$algo" trainer.total_steps=200 trainer.save_every=0 run.name="$algo-$seed" run.dir="$run" \
      run.seed=$seed run.resume=auto tracking.wandb=disabled tracking.group=family >"$RUNS/$algo-$seed.log" 2>&1 ||
      echo "$algo-$seed: $(tail -n 1 "$RUNS/$algo-$seed.log")"
  done
done
