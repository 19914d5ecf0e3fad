"""Where a margin comes from: `python places.py PAIRS.jsonl BASE RUN` writes RUN/places.json.

For held-out pairs it adds up log(policy / base) of the chosen answer minus that of the rejected one, both whole, over two
parts: the step where they part, and what follows it. (What stands before is the same in both.) Of the chosen answer it also
adds up what follows by itself. And it counts where they part: the place of the first wrong step, and its share of the rejected
answer's steps.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM

from rlopt.data.arithmetic import split_steps
from rlopt.models.loading import find_model, load_tokenizer
from rlopt.run import checkpoint

COUNT = 400
"""Pairs."""


def logprobs(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of each token of the answer, `[T]`."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", help="a file of held-out pairs")
    parser.add_argument("base", help="the model before, as model.path takes it")
    parser.add_argument("run", help="the folder of a run")
    pairs, base, run = vars(parser.parse_args()).values()
    out = Path(run) / "places.json"
    if out.exists():
        return
    first = find_model(base, lambda *_: None)
    text = load_tokenizer(first)
    models = [
        AutoModelForCausalLM.from_pretrained(where).eval() for where in (checkpoint.find_all(Path(run))[-1] / "hf", first)
    ]
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()][:COUNT]
    parts: dict[str, list[float]] = {"step": [], "after": [], "after_chosen": []}
    places, depths = [], []
    for row in rows:
        prompt = text.encode(row["prompt"] + row["initial_reason_steps"])
        sums = dict.fromkeys(parts, 0.0)
        for sign, side in ((1, "chosen"), (-1, "rejected")):
            answer = [*text.encode(row[f"full_{side}"]), text.eos_token_id]
            policy, reference = (logprobs(model, prompt, answer) for model in models)
            moved, cut = policy - reference, len(text.encode(row[side]))
            sums["step"] += sign * float(moved[:cut].sum())
            sums["after"] += sign * float(moved[cut:].sum())
            if side == "chosen":
                sums["after_chosen"] = float(moved[cut:].sum())
        for name, value in sums.items():
            parts[name].append(value)
        place, left = len(split_steps(row["initial_reason_steps"])), len(split_steps(row["full_rejected"]))
        places.append(place)
        depths.append((place + 0.5) / (place + left))
    found = {name: fmean(values) for name, values in parts.items()}
    found |= {"place": fmean(places), "depth": fmean(depths), "first": places.count(0) / len(places)}
    out.write_text(json.dumps(found))
    print(f"{Path(run).name}: step {found['step']:.3f}, after {found['after']:.3f} nats; depth {found['depth']:.2f}")


main()
