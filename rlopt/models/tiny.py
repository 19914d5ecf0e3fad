"""`tiny_s` and `tiny_l`: Qwen2-architecture models trained from scratch, on this machine, the first time they are needed.

They take the place of a downloaded model: a folder with config, safetensors and tokenizer that transformers
and vLLM load. Training them is plain supervised learning on `arithmetic.corpus`; it is not part of a run.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rlopt.data import arithmetic


@dataclass(frozen=True)
class Recipe:
    """How one of the two models is made. Everything that decides its weights is here; its hash names the cache folder.

    The first `schooling` of the steps teach the arithmetic, with worked and right solutions nearly alone. The others teach
    the habits that reinforcement is to find and change: terse solutions and slips, in the shares given.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    tied: bool
    steps: int
    batch: int
    lr: float
    schooling: float = 0.75
    worked_share: float = 0.55
    slip_share: float = 0.3
    seed: int = 0


RECIPES = {
    "tiny_s": Recipe(hidden=64, layers=2, heads=2, intermediate=256, tied=True, steps=900, batch=96, lr=4e-3),
    "tiny_l": Recipe(hidden=192, layers=2, heads=6, intermediate=576, tied=False, steps=800, batch=64, lr=3e-3),
}

MAX_LENGTH = 128
"""Positions that the models know: the longest problem with its worked solution takes 81."""


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a character of the task, `<pad>` 0 and `<eos>` 1."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *arithmetic.CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", model_max_length=MAX_LENGTH
    )


def train(recipe: Recipe, folder: Path, progress: Callable[[int, int, float], None]) -> None:
    """Train the model of `recipe` and save it to `folder`, which appears only when complete.

    `progress(step, steps, loss)` is called after every step; the loss is in nats per solution token.
    """
    torch.manual_seed(recipe.seed)
    text = tokenizer()
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(text),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=MAX_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=recipe.tied,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
            dtype="float32",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step, (tokens, targets) in enumerate(_batches(recipe, text), 1):
        warm, left = min(1.0, step / 50), (recipe.steps - step) / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * (0.05 + 0.95 * 0.5 * (1 - math.cos(math.pi * left)))
        logits = model(tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step, recipe.steps, loss.item())
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(aside)
    text.save_pretrained(aside)
    (aside / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))
    aside.rename(folder)


def _batches(recipe: Recipe, text: transformers.PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded token ids and targets (-100 on prompt and padding), both `[batch, T]`."""
    rng = random.Random(recipe.seed)
    school = arithmetic.corpus(rng, worked_share=0.9, slip_share=0.0)
    habits = arithmetic.corpus(rng, recipe.worked_share, recipe.slip_share)
    ids = dict(text.get_vocab())
    for step in range(recipe.steps):
        pairs = school if step < recipe.schooling * recipe.steps else habits
        tokens = torch.zeros(recipe.batch, MAX_LENGTH, dtype=torch.long)
        targets = torch.full_like(tokens, -100)
        longest = 0
        for row in range(recipe.batch):
            prompt, solution = next(pairs)
            line = [ids[c] for c in prompt + solution] + [text.eos_token_id]
            tokens[row, : len(line)] = torch.tensor(line)
            targets[row, len(prompt) : len(line)] = tokens[row, len(prompt) : len(line)]
            longest = max(longest, len(line))
        yield tokens[:, :longest], targets[:, :longest]
