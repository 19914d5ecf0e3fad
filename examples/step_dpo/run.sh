#!/usr/bin/env bash
# The margin figure of Step-DPO: Step-DPO and DPO on a small and a large model of long sums, three seeds, 250 steps of 32 pairs.
# Learning rates are chosen on a seed that is not reported. Interrupted, it goes on where it was. RUNS chooses where the runs go;
# MODELS which models, to do one after another; JOBS how many runs at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUNS=${RUNS:-runs/step_dpo} PYTHON=${PYTHON:-.venv/bin/python} HERE=examples/step_dpo
RATES=${RATES:-3e-6 1e-5 3e-5 1e-4 3e-4}
mkdir -p "$RUNS"

train() { # model algorithm learning-rate seed folder
  [ -f "$5/checkpoints/step_250/manifest.json" ] && return
  $PYTHON -m rlopt.train "+algo=$2" model.path="$1" algo.beta=0.5 data.train="$RUNS/$1.jsonl" data.eval="$RUNS/$1.eval.jsonl" \
    data.invalid_rows=drop data.prompts_per_step=32 learner.lr="$3" learner.lr_schedule=cosine learner.warmup_steps=25 \
    trainer.total_steps=250 trainer.eval_every=10 trainer.save_every=0 run.seed="$4" run.name="$(basename "$5")" run.dir="$5" \
    cluster.cpu_threads=1 tracking.wandb=disabled >"$5.log" 2>&1
}
tune() { # model algorithm learning-rate
  run=$RUNS/tune-$1-$2-$3
  train "$1" "$2" "$3" 0 "$run"
  $PYTHON $HERE/accuracy.py validation "$run"
  $PYTHON $HERE/places.py "$RUNS/$1.eval.jsonl" "$1" "$run"
}
report() { # model algorithm learning-rate seed
  run=$RUNS/$1-$2-$4
  train "$1" "$2" "$3" "$4" "$run"
  $PYTHON $HERE/accuracy.py test "$run"
  $PYTHON $HERE/places.py "$RUNS/$1.eval.jsonl" "$1" "$run"
}
each() { xargs -P "${JOBS:-2}" -L 1 bash -euo pipefail -c "$1"' "$@"' "$1"; }
export -f train tune report

for model in ${MODELS:-tiny_sums_s tiny_sums_l}; do
  [ -f "$RUNS/$model.jsonl" ] ||
    $PYTHON -m rlopt.pairs model.path="$model" pairs.out="$RUNS/$model.jsonl" pairs.count=2500 pairs.eval_share=0.2 \
      pairs.locate=rlopt.data.sums:locate data.train=sums data.size=8000 \
      rollout.max_new_tokens=104 rollout.temperature=1.0 rollout.top_p=1.0
  $PYTHON $HERE/accuracy.py test "$model" "$RUNS/$model-before"
  # Both algorithms get the same rates; the one with the best accuracy on validation problems is taken.
  for algo in dpo step_dpo; do
    for lr in $RATES; do echo "$model $algo $lr"; done
  done | each tune
  for algo in dpo step_dpo; do
    lr=$($PYTHON $HERE/accuracy.py best "$RUNS"/tune-"$model"-$algo-*/)
    for seed in 1 2 3; do echo "$model $algo $lr $seed"; done
  done | each report
done
$PYTHON $HERE/figure.py "$RUNS" $HERE
