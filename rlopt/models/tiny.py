"""`tiny_s`, `tiny_l` and the models of the embedded environments: Qwen2-architecture models trained from scratch, on this
machine, the first time they are needed.

They take the place of a downloaded model: a folder with config, safetensors and tokenizer that transformers
and vLLM load. Training them is plain supervised learning on an embedded task's `corpus`; it is not part of a run.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rlopt.core.pieces import Pieces
from rlopt.data import arithmetic, calculator, guessing, sums, verbose


@dataclass(frozen=True)
class Recipe:
    """How one of the models is made. Everything that decides its weights is here; its hash names the cache folder.

    The first `schooling` of the steps teach the task, with what is good nearly alone. The others teach the habits that
    reinforcement is to find and change, in the shares given: `worked_share` of solutions with steps (`tiny_verbose`: of those
    that ramble), of episodes with calls, or of players who halve; `slip_share` of those with a slip, or of players who guess
    blindly.
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


_SMALL = Recipe(hidden=64, layers=2, heads=2, intermediate=256, tied=True, steps=900, batch=96, lr=4e-3)
_LARGE = Recipe(hidden=192, layers=2, heads=6, intermediate=576, tied=False, steps=800, batch=64, lr=3e-3)
RECIPES = {
    "tiny_s": _SMALL,
    "tiny_l": _LARGE,
    "tiny_sums_s": replace(_SMALL, worked_share=0.97, slip_share=0.5),
    "tiny_sums_l": replace(_LARGE, worked_share=0.97, slip_share=0.5),
    "tiny_verbose": replace(_SMALL, worked_share=0.95, slip_share=0.13),
    "tiny_calculator": replace(_SMALL, worked_share=0.5, slip_share=0.4),
    "tiny_guessing": replace(_SMALL, worked_share=0.2, slip_share=0.4),
}


@dataclass(frozen=True)
class Task:
    """What a model is trained on: the characters it knows, and texts for its schooling and its habits, by the recipe.

    `length` is how many positions it knows; a longer text is cut there, and so has no end. The longest problem of `arithmetic`
    with its solution takes 81, of `sums` 124.
    """

    characters: str
    school: Callable[[random.Random], Iterator[Pieces]]
    habits: Callable[[random.Random, Recipe], Iterator[Pieces]]
    length: int = 128


ARITHMETIC = Task(
    characters=arithmetic.CHARACTERS,
    school=lambda rng: _solved(arithmetic.corpus(rng, worked_share=0.9, slip_share=0.0)),
    habits=lambda rng, recipe: _solved(arithmetic.corpus(rng, recipe.worked_share, recipe.slip_share)),
)
_SUMS = Task(
    characters=sums.CHARACTERS,
    school=lambda rng: _solved(sums.corpus(rng, worked_share=1.0, slip_share=0.0)),
    habits=lambda rng, recipe: _solved(sums.corpus(rng, recipe.worked_share, recipe.slip_share)),
)
TASKS = {
    "tiny_sums_s": _SUMS,
    "tiny_sums_l": _SUMS,
    "tiny_verbose": Task(
        characters=verbose.CHARACTERS,
        school=lambda rng: _solved(verbose.corpus(rng, ramble_share=0.2, slip_share=0.0)),
        habits=lambda rng, recipe: _solved(verbose.corpus(rng, recipe.worked_share, recipe.slip_share)),
        length=verbose.LONGEST,
    ),
    "tiny_calculator": Task(
        characters=calculator.CHARACTERS,
        school=lambda rng: calculator.corpus(rng, calls_share=0.9, slip_share=0.0),
        habits=lambda rng, recipe: calculator.corpus(rng, recipe.worked_share, recipe.slip_share),
    ),
    "tiny_guessing": Task(
        characters=guessing.CHARACTERS,
        school=lambda rng: guessing.corpus(rng, halving_share=0.5, blind_share=0.1),
        habits=lambda rng, recipe: guessing.corpus(rng, recipe.worked_share, recipe.slip_share),
    ),
}
"""Tasks of the models that are not trained on plain arithmetic."""


def tokenizer(task: Task = ARITHMETIC) -> transformers.PreTrainedTokenizerFast:
    """One token a character of the task, `<pad>` 0 and `<eos>` 1."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *task.characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", model_max_length=task.length
    )


def train(recipe: Recipe, folder: Path, progress: Callable[[int, int, float], None], task: Task = ARITHMETIC) -> None:
    """Train the model of `recipe` on `task` and save it to `folder`, which appears only when complete.

    `progress(step, steps, loss)` is called after every step; the loss is in nats per solution token.
    """
    torch.manual_seed(recipe.seed)
    text = tokenizer(task)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(text),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=task.length,
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
    for step, (tokens, targets) in enumerate(_batches(recipe, text, task), 1):
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


def _solved(pairs: Iterator[tuple[str, str]]) -> Iterator[Pieces]:
    """Prompts and solutions as pieces."""
    for prompt, solution in pairs:
        yield [(prompt, False), (solution, True)]


def _batches(
    recipe: Recipe, text: transformers.PreTrainedTokenizerFast, task: Task
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded token ids and targets (-100 on padding and on what the policy does not write), both `[batch, T]`."""
    rng = random.Random(recipe.seed)
    school, habits = task.school(rng), task.habits(rng, recipe)
    ids = dict(text.get_vocab())
    for step in range(recipe.steps):
        texts = school if step < recipe.schooling * recipe.steps else habits
        tokens = torch.zeros(recipe.batch, task.length, dtype=torch.long)
        targets = torch.full_like(tokens, -100)
        longest = 0
        for row in range(recipe.batch):
            at = 0
            for piece, learned in [*next(texts), (None, True)]:
                line = ([text.eos_token_id] if piece is None else [ids[c] for c in piece])[: task.length - at]
                end = at + len(line)
                tokens[row, at:end] = torch.tensor(line)
                if learned:
                    targets[row, at:end] = tokens[row, at:end]
                at = end
            longest = max(longest, at)
        yield tokens[:, :longest], targets[:, :longest]
