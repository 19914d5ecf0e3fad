"""Which models' sequences ranks can share, and which part of one a rank has. `real/learner/test_ranks.py` has them learn."""

from pathlib import Path

import pytest
import torch
import transformers

from rlopt.core.errors import RloptError
from rlopt.models.sequence_parallel import SharedSequences, check_shareable

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
FULL = transformers.Qwen2Config(**SIZES, num_key_value_heads=4)
REFUSED = {
    "the model has 4 key-value heads": (8, FULL),
    "the model has 8 attention heads": (3, FULL),
    "the model has sliding_attention": (2, transformers.MistralConfig(**SIZES, num_key_value_heads=4, sliding_window=8)),
    "the model has sliding_attention, soft-capped attention": (2, transformers.Gemma2Config(**SIZES, num_key_value_heads=4)),
    "the model has dynamic rope": (
        2,
        transformers.LlamaConfig(
            **SIZES, num_key_value_heads=4, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_model_whose_sequences_cannot_be_shared_is_refused_before_the_start(why: str, tmp_path: Path) -> None:
    size, config = REFUSED[why]
    config.save_pretrained(tmp_path)
    with pytest.raises(RloptError, match=f"learner.sequence_parallel={size}: {why}, which ranks cannot share"):
        check_shareable(tmp_path, size)


def test_a_model_with_plain_attention_is_shared_by_as_many_ranks_as_divide_its_key_value_heads(tmp_path: Path) -> None:
    FULL.save_pretrained(tmp_path)
    for size in (1, 2, 4):
        check_shareable(tmp_path, size)


def test_a_rank_has_the_next_tokens_of_every_sequence_and_the_last_is_filled_up() -> None:
    second = SharedSequences.__new__(SharedSequences)  # without its process group
    second.place, second.size = 1, 2
    part = second.part(torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]))
    assert part.tolist() == [[4, 5, 0], [9, 10, 0]]
    assert second.positions(part).tolist() == [[3, 4, 5]]
