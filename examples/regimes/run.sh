#!/usr/bin/env bash
# REINFORCE, GRPO, REC-OneSide-NoIS and RED-Weight on data of five kinds of staleness, 400 steps, three seeds; and, 20 steps
# stale, REC-OneSide with importance sampling and with a wide clip. About five hours on two cores. Interrupted, it goes on where
# it was. RUNS chooses where the runs go, SEEDS which seeds.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/regimes} PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$RUNS"

train() { # name, seed, overrides
  local run=$RUNS/$1-$2
  compgen -G "$run/checkpoints/step_*/manifest.json" >/dev/null && return
  # A run that ends in numbers that are not finite is a result too: it is noted, and the others go on.
  $PYTHON -m rlopt.train "${@:3}" trainer.save_every=0 run.name="$1-$2" run.dir="$run" run.seed="$2" \
    tracking.wandb=disabled >"$run.log" 2>&1 || echo "$1-$2: $(tail -n 1 "$run.log")" | tee -a "$RUNS/ended_early.txt"
}

held_out() { # seed. What the policy at the end makes of held-out prompts: offline, the rewards of a run are those of its record.
  local run
  for run in "$RUNS"/{record,*.offline}-"$1"/; do
    run=${run%/}
    if [[ ! -e $run/held_out.json ]] && compgen -G "$run/checkpoints/step_*/manifest.json" >/dev/null; then
      $PYTHON -m rlopt.evaluate run="$run" eval.limit=500 eval.samples=8 evaluate.out="$run/held_out.json" >>"$run.log" 2>&1 ||
        echo "$run, held out: $(tail -n 1 "$run.log")" | tee -a "$RUNS/ended_early.txt"
    fi
  done
}

declare -A regime=(
  [on_policy]="sync.interval=1"
  [frozen_20]="sync.interval=20"
  [pipeline_10]="sync.interval=1 sync.offset=10"
  [async_8]="sync.mode=async sync.interval=1 sync.max_lag=8"
)
for seed in ${SEEDS:-1 2 3}; do
  # What the initial model says of 400 batches: the data of the offline runs.
  train record "$seed" +algo=reinforce sync.interval=400 run.record=true learner.lr=1e-12
  for algo in reinforce grpo rec_oneside_nois red_weight; do
    for name in on_policy frozen_20 pipeline_10 async_8; do
      # shellcheck disable=SC2086
      train "$algo.$name" "$seed" +algo=$algo ${regime[$name]}
    done
    train "$algo.offline" "$seed" +algo=$algo data.experience="$RUNS/record-$seed/experience.jsonl.gz"
  done
  train rec_oneside_is.frozen_20 "$seed" +algo=rec_oneside_is sync.interval=20
  train rec_oneside_wide.frozen_20 "$seed" +algo=rec_oneside_nois sync.interval=20 algo.clip_low=0.6 algo.clip_high=2.0
  held_out "$seed"
done
