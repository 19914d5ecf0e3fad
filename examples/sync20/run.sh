#!/usr/bin/env bash
# The figure of arXiv:2509.24203: three algorithms, samplers up to 19 steps old, 400 steps, on the task `verbose`. First a sweep of
# five learning rates on seeds 4 to 6 (and of two too large ones on seed 4), from which one is chosen for each algorithm; then seeds
# 1 to 3 at it. 60 runs, about an hour and a half on two cores. Interrupted, it goes on where it was. RUNS chooses where the runs
# go, JOBS how many run at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUNS=${RUNS:-runs/sync20} PYTHON=${PYTHON:-.venv/bin/python}
HERE=examples/sync20
mkdir -p "$RUNS"

train() { # algorithm learning-rate seed
  run=$RUNS/$1-$2-$3
  [ -f "$run/checkpoints/step_400/manifest.json" ] && return
  # A run that ends in numbers that are not finite is a result too: it is noted, and the others go on.
  $PYTHON -m rlopt.train "+algo=$1" data.train=verbose model.path=tiny_verbose data.prompts_per_step=4 rollout.max_new_tokens=160 \
    learner.lr="$2" run.seed="$3" run.name="$1-$2-$3" run.dir="$run" trainer.save_every=0 tracking.wandb=disabled \
    >"$run.log" 2>&1 || echo "$1-$2-$3: $(tail -n 1 "$run.log")" | tee -a "$RUNS/ended_early.txt"
}
export -f train

each() { xargs -P "${JOBS:-2}" -L 1 bash -c 'train "$0" "$1" "$2"'; }

algorithms="grpo rec_oneside_nois red_weight"
# The base model is trained once, before two runs at a time would wait for it.
$PYTHON -c "from rlopt.models.loading import find_model; find_model('tiny_verbose', print)"
{
  for seed in 4 5 6; do
    for lr in 1e-5 1.7e-5 3e-5 5.5e-5 1e-4; do
      for algo in $algorithms; do echo "$algo $lr $seed"; done
    done
  done
  for lr in 3e-4 1e-3; do
    for algo in $algorithms; do echo "$algo $lr 4"; done
  done
} | each
$PYTHON $HERE/sweep.py choose "$RUNS" | while read -r algo lr; do
  for seed in 1 2 3; do echo "$algo $lr $seed"; done
done | each
$PYTHON $HERE/figure.py "$RUNS" $HERE
