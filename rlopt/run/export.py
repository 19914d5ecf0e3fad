"""A checkpoint as a Hugging Face folder, verified against the learner.

A checkpoint keeps the learner's log-probabilities of a few texts. The exported folder is loaded again from its files
by transformers alone, scores the same texts, and gets its name only if its numbers are the same.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from rlopt.core.atomic_write import prepare_output, writing
from rlopt.core.errors import RloptError
from rlopt.run import checkpoint
from rlopt.tracking.run_folder import config_of


@dataclass(frozen=True)
class Exported:
    """A finished folder, and the largest difference to the learner's log-probabilities, in nats over `tokens` tokens."""

    folder: Path
    difference: float
    tokens: int


def export(run: Path, out: Path, which: str = "latest", shard_size: str = "5GB") -> Exported:
    """Write the model of a run's checkpoint to the folder `out`.

    Args:
        which: `latest`, `best` or a step.
        shard_size: of a safetensors file at most, as transformers writes it.

    Raises:
        RloptError: there is no such checkpoint, `out` is there already, or the exported model scores otherwise than the
            learner did.
    """
    import transformers

    from rlopt.models.loading import load_tokenizer
    from rlopt.models.policy import TOLERANCE, save_model

    if out.exists():
        raise RloptError(f"--out={out}: is there already; choose another, or remove it")
    kept = checkpoint.choose(run, which)
    canary = checkpoint.load_state(kept).get("canary")
    if not canary:
        raise RloptError(f"{kept}: was saved without the learner's word on canary texts, so an export cannot be proved")
    config = config_of(run)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    prepare_output("--out", out)
    aside.mkdir()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(kept / "hf", dtype="auto")
        with writing("--out", out):
            save_model(model, kept / "hf", aside, max_shard_size=shard_size)
            load_tokenizer(kept / "hf").save_pretrained(aside)
        dtype = str(model.dtype).removeprefix("torch.")
        del model
        difference, tokens = _difference(aside, canary, getattr(torch, dtype)), sum(map(len, canary["logprobs"]))
        if not difference <= TOLERANCE[dtype]:
            raise RloptError(
                f"{out}: the exported model differs from the learner by {difference:.2e} nats on a token, {dtype} allows "
                f"{TOLERANCE[dtype]:.0e}; {kept / 'hf'} was changed after it was saved"
            )
        with writing("--out", out):
            _write_card(aside, run, kept, config, difference, tokens)
            os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(out, difference, tokens)


def _difference(folder: Path, canary: dict[str, Any], dtype: torch.dtype) -> float:
    """The largest difference of a token's log-probability between the model in `folder`, run by transformers, and the
    learner.
    """
    import transformers

    from rlopt.models.policy import own_logprobs

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        found = [
            (own_logprobs(model, torch.tensor([text]))[0] - torch.tensor(said)).abs()
            for text, said in zip(canary["texts"], canary["logprobs"], strict=True)
        ]
    return torch.cat(found).max().item()  # NaN where any is


def _write_card(folder: Path, run: Path, kept: Path, config: dict[str, Any], difference: float, tokens: int) -> None:
    """Write README.md, which the Hub shows: how the model was trained, its curves and its config."""
    from rlopt.diagnosis import curves

    families = curves.load([run])
    curves.draw(families, folder / "curves")
    (folder / "curves.svg").unlink()
    (row,) = curves.table(families)
    titles = {name: curves.panels_of([run])[name][0] for name in families[0].curves}
    lines = [f"| {titles[name]} (`{name}`) | {row[name]['first']:.4g} | {row[name]['last']:.4g} |" for name in titles]
    algo, base, step = config["algo"]["name"], config["model"]["path"], kept.name.removeprefix("step_")
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["rlopt", "reinforcement-learning", algo]}
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        head["base_model"] = base
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# {config['run']['name']}\n\n"
        f"`{Path(base).name}`, trained by {algo} with rlopt: learner step {step} of {config['trainer']['total_steps']}.\n"
        f"Loaded again from these files, it differs from the learner by at most {difference:.1e} nats on {tokens} tokens.\n\n"
        f"![training curves](curves.png)\n\n"
        f"| | first {curves.SPAN} steps | last {curves.SPAN} steps |\n|---|---|---|\n" + "\n".join(lines) + "\n\n"
        f"## Config\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False)}```\n"
    )
