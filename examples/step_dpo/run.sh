#!/usr/bin/env bash
# The margin figure of Step-DPO: Step-DPO and DPO on tiny_s and tiny_l, three seeds, 250 steps of 32 pairs. About an hour on two
# cores, the tuning of the learning rate included. Interrupted, it goes on where it was. RUNS chooses where the runs go.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/step_dpo}
PYTHON=${PYTHON:-.venv/bin/python}
HERE=examples/step_dpo
mkdir -p "$RUNS"

train() { # model algorithm learning-rate seed folder
  [ -f "$5/checkpoints/step_250/manifest.json" ] && return
  $PYTHON -m rlopt.train "+algo=$2" model.path="$1" algo.beta=0.5 data.train="$RUNS/$1.jsonl" data.eval="$RUNS/$1.eval.jsonl" \
    data.prompts_per_step=32 learner.lr="$3" learner.lr_schedule=cosine learner.warmup_steps=25 \
    trainer.total_steps=250 trainer.eval_every=25 trainer.save_every=0 run.seed="$4" run.name="$(basename "$5")" run.dir="$5" \
    tracking.wandb=disabled tracking.group=step_dpo
}

for model in tiny_s tiny_l; do
  [ -f "$RUNS/$model.jsonl" ] ||
    $PYTHON -m rlopt.pairs model.path=$model pairs.out="$RUNS/$model.jsonl" pairs.count=2500 pairs.eval_share=0.2 data.size=6000
done

# Both algorithms get the same grid; the rate with the best accuracy on validation problems is taken.
for model in tiny_s tiny_l; do
  for algo in dpo step_dpo; do
    for lr in 3e-5 1e-4 3e-4; do
      train $model $algo $lr 0 "$RUNS/tune-$model-$algo-$lr"
      $PYTHON $HERE/accuracy.py validation "$RUNS/tune-$model-$algo-$lr"
    done
    lr=$($PYTHON $HERE/accuracy.py best "$RUNS"/tune-$model-$algo-*)
    for seed in 1 2 3; do
      train $model $algo "$lr" $seed "$RUNS/$model-$algo-$seed"
      $PYTHON $HERE/accuracy.py test "$RUNS/$model-$algo-$seed"
    done
  done
  $PYTHON $HERE/accuracy.py test $model "$RUNS/$model-before"
done
$PYTHON $HERE/figure.py "$RUNS" $HERE
