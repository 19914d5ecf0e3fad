"""Tensors have the shapes and types that annotations say, in every algorithm, from groups to the loss."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import batch_of, group
from jaxtyping import TypeCheckError

from rlopt.core.batches import PolicyOutputs

EVERY_ALGORITHM = """
from jaxtyping import install_import_hook
CHECKED = ["rlopt.core.batches", "rlopt.core.table", "rlopt.data.collate", "rlopt.data.microbatches", "rlopt.objectives"]
install_import_hook(CHECKED, "beartype.beartype")
import torch
from builders import group, terms
from rlopt.config.compose import algorithms, read
from rlopt.core.batches import PolicyOutputs
from rlopt.core.samples import Example, Prompt
from rlopt.data.collate import tabulate, tabulate_examples
from rlopt.data.microbatches import microbatches
from rlopt.objectives.core import total_loss
from rlopt.objectives.credit import compute_advantages
from rlopt.objectives.registry import load_class, objective_of

for name in algorithms():
    path, options = objective_of(name)
    objective = read(load_class(path), options, "")
    if objective.traits.rows == "groups":
        sequences = tabulate([group("a", (1.0, 0.0, 1.0)), group("b", (0.0, 0.0, 1.0))], 1)
    else:
        answers = ((7, 8), (9,)) if objective.traits.rows != "answers" else ((7, 8),)
        sequences = tabulate_examples([Example(Prompt("p", (5, 6), "", "", ""), answers)] * 2)
    (update,) = compute_advantages(sequences, None, torch.zeros(sequences.shape), objective, terms())
    for share in microbatches(update, objective.traits.unit, 1, 100):
        for part in (piece.batch() for piece in share):
            outputs = PolicyOutputs(part.old_logprobs.clone().requires_grad_(), torch.zeros_like(part.mask))
            total_loss(objective, terms(), part, outputs)
    print(name)
"""


def test_every_algorithm_makes_and_takes_tensors_of_the_annotated_shapes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_ALGORITHM], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 41


def test_a_tensor_of_another_shape_or_type_is_refused_where_a_record_is_made() -> None:
    batch = batch_of([group("a", (1.0, 0.0))])
    with pytest.raises(TypeCheckError, match="entropy"):
        PolicyOutputs(batch.old_logprobs, torch.zeros(len(batch)))
    with pytest.raises(TypeCheckError, match="entropy"):
        PolicyOutputs(batch.old_logprobs, torch.zeros(len(batch), batch.mask.shape[1] + 1))
    with pytest.raises(TypeCheckError, match="logprobs"):
        PolicyOutputs(batch.token_ids, batch.mask)
