#!/usr/bin/env bash
# Every group-relative algorithm as its YAML has it, samplers 20 updates stale, 120 steps, three seeds: about three hours on
# two cores. Interrupted, it goes on where it was. RUNS chooses where the runs go, JOBS how many run at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUNS=${RUNS:-runs/family} PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$RUNS"

train() {
  run=$RUNS/$1-$2
  compgen -G "$run/checkpoints/step_*/manifest.json" >/dev/null && return
  # A run that ends in numbers that are not finite is a result too: it is noted, and the others go on.
  $PYTHON -m rlopt.train +algo="$1" trainer.total_steps=120 trainer.save_every=0 run.name="$1-$2" run.dir="$run" run.seed="$2" \
    tracking.wandb=disabled >"$run.log" 2>&1 || echo "$1-$2: $(tail -n 1 "$run.log")" | tee -a "$RUNS/ended_early.txt"
}
export -f train

for seed in 1 2 3; do
  for file in $(grep -l _group_relative@ conf/algo/*.yaml); do
    echo "$(basename "$file" .yaml) $seed"
  done
done | xargs -P "${JOBS:-1}" -L 1 bash -c 'train "$0" "$1"'
