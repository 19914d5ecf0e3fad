#!/usr/bin/env bash
# The margin figure of Step-DPO: Step-DPO and DPO on a small and a large model of long sums, three seeds, 250 steps of 32 pairs.
# Learning rates are chosen on a seed that is not reported. Interrupted, it goes on where it was. RUNS chooses where the runs go;
# MODELS which models, to do one after another.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/step_dpo}
PYTHON=${PYTHON:-.venv/bin/python}
HERE=examples/step_dpo
RATES=${RATES:-3e-6 1e-5 3e-5 1e-4 3e-4}
mkdir -p "$RUNS"

train() { # model algorithm learning-rate seed folder
  [ -f "$5/checkpoints/step_250/manifest.json" ] && return
  $PYTHON -m rlopt.train "+algo=$2" model.path="$1" algo.beta=0.5 data.train="$RUNS/$1.jsonl" data.eval="$RUNS/$1.eval.jsonl" \
    data.invalid_rows=drop data.prompts_per_step=32 learner.lr="$3" learner.lr_schedule=cosine learner.warmup_steps=25 \
    trainer.total_steps=250 trainer.eval_every=10 trainer.save_every=0 run.seed="$4" run.name="$(basename "$5")" run.dir="$5" \
    tracking.wandb=disabled tracking.group=step_dpo
}

for model in ${MODELS:-tiny_sums_s tiny_sums_l}; do
  [ -f "$RUNS/$model.jsonl" ] ||
    $PYTHON -m rlopt.pairs model.path="$model" pairs.out="$RUNS/$model.jsonl" pairs.count=2500 pairs.eval_share=0.2 \
      pairs.locate=rlopt.data.sums:locate data.train=sums data.size=8000 \
      rollout.max_new_tokens=104 rollout.temperature=1.0 rollout.top_p=1.0
  $PYTHON $HERE/accuracy.py test "$model" "$RUNS/$model-before"
  # Both algorithms get the same rates; the one with the best accuracy on validation problems is taken.
  for algo in dpo step_dpo; do
    for lr in $RATES; do
      train "$model" $algo "$lr" 0 "$RUNS/tune-$model-$algo-$lr"
      $PYTHON $HERE/accuracy.py validation "$RUNS/tune-$model-$algo-$lr"
    done
    lr=$($PYTHON $HERE/accuracy.py best "$RUNS"/tune-"$model"-$algo-*)
    for seed in 1 2 3; do
      train "$model" $algo "$lr" $seed "$RUNS/$model-$algo-$seed"
      $PYTHON $HERE/accuracy.py test "$RUNS/$model-$algo-$seed"
      $PYTHON $HERE/places.py "$RUNS/$model.eval.jsonl" "$model" "$RUNS/$model-$algo-$seed"
    done
  done
done
$PYTHON $HERE/figure.py "$RUNS" $HERE
