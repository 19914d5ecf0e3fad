"""The plan's memory of a learner against what torch holds, with DeepSpeed; no engine and no Ray."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from builders import compose
from ranks import Case, peaks, update

from rlopt.config.schema import Config
from rlopt.models.loading import shape_of
from rlopt.run.memory import learner_memory

TOKENS, VOCABULARY, CHUNK = 1024, 4096, 256
BUCKET = 100_000
"""As small beside this model as the default is beside one of 1.5 billion parameters."""


@dataclass(frozen=True)
class Way:
    """A way to learn that takes memory of its own."""

    world: int
    zero: int
    dtype: torch.dtype
    checkpointing: bool

    def __str__(self) -> str:
        return f"{self.world} of ZeRO {self.zero}, {self.dtype}, {'recomputed' if self.checkpointing else 'kept'} layers"


WAYS = [
    Way(1, 0, torch.float32, False),
    Way(1, 1, torch.float32, True),
    Way(1, 2, torch.bfloat16, False),
    Way(2, 1, torch.bfloat16, True),
    Way(2, 2, torch.float32, True),
    Way(2, 3, torch.float32, True),
    Way(2, 3, torch.bfloat16, False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 2}
    config = transformers.Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=256)
    transformers.Qwen2ForCausalLM(config).save_pretrained(made)
    return made


def config(way: Way) -> Config:
    keys = {"workers": way.world, "zero_stage": way.zero, "gradient_checkpointing": str(way.checkpointing).lower()}
    keys |= {"logit_chunk": CHUNK, "token_budget": TOKENS, "deepspeed.zero_optimization.reduce_bucket_size": BUCKET}
    return compose("+algo=grpo", *(f"++learner.{key}={value}" for key, value in keys.items()))


@pytest.fixture(scope="module")
def held(folder: Path) -> dict[Way, int]:
    """The most bytes that a rank held, by way. Its micro-batches are full: 8 sequences of 128 tokens."""
    share = update([126] * (TOKENS // 128), VOCABULARY)
    found = {}
    for world in (1, 2):
        ways = [way for way in WAYS if way.world == world]
        cases = [Case(folder, config(way).learner, way.dtype, [[share, share]] * world) for way in ways]
        found.update(zip(ways, peaks(cases, world), strict=True))
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_plan_is_within_a_tenth_of_what_a_rank_holds(way: Way, folder: Path, held: dict[Way, int]) -> None:
    planned = learner_memory(config(way), shape_of(folder), way.dtype.itemsize, reference=True)
    assert held[way] == pytest.approx(planned.total, rel=0.1)
