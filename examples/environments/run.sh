#!/usr/bin/env bash
# The two embedded environments: GRPO and REC-OneSide-NoIS with samplers up to 19 steps old, and GRPO asynchronous, three seeds each,
# 160 steps. About half an hour on two cores. Interrupted, it goes on where it was. RUNS chooses where the runs go.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/environments}
PYTHON=${PYTHON:-.venv/bin/python}
for seed in 1 2 3; do
  for env in calculator guessing; do
    for kind in grpo rec_oneside_nois async; do
      run=$RUNS/$env.$kind-$seed
      [ -f "$run/checkpoints/step_160/manifest.json" ] && continue
      algo=$kind keys=()
      [ $kind = async ] && algo=grpo keys=(sync.mode=async sync.interval=1 sync.max_lag=8)
      $PYTHON -m rlopt.train +experiment=$env +algo=$algo "${keys[@]}" trainer.total_steps=160 trainer.save_every=0 \
        run.name=$env-$kind-$seed run.dir="$run" run.seed=$seed tracking.group=environments tracking.wandb=disabled
    done
  done
done
$PYTHON examples/environments/figure.py "$RUNS" examples/environments
