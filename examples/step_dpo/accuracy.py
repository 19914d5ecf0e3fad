"""Accuracy on sums that no run was trained on.

    python accuracy.py validation|test RUN           the run's last checkpoint; the result goes to RUN/accuracy.json
    python accuracy.py test MODEL FOLDER             a model as model.path takes it; the result goes to FOLDER
    python accuracy.py best RUN [RUN ...]            prints the learning rate of the run with the best accuracy at temperature 1

Validation and test problems do not overlap, nor do they with training problems (`sums.problems(held_out=True)`).
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM

from rlopt.data import arithmetic, sums
from rlopt.models.loading import find_model, load_tokenizer
from rlopt.run import checkpoint

COUNT, SAMPLES = 500, 4
"""Problems, and answers to each at temperature 1."""


def measure(model_folder: Path, split: str) -> dict[str, float]:
    """Share of right answers: the most likely one, and samples at temperature 1."""
    held_out = sums.problems(0, 2 * COUNT, held_out=True)
    problems = held_out[:COUNT] if split == "validation" else held_out[COUNT:]
    tokenizer = load_tokenizer(model_folder)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    asked = tokenizer([problem.text for problem in problems], return_tensors="pt", padding=True, return_token_type_ids=False)

    def right(**how: object) -> float:
        torch.manual_seed(0)
        ids = model.generate(**asked, max_new_tokens=104, pad_token_id=tokenizer.pad_token_id, **how)
        texts = tokenizer.batch_decode(ids[:, asked.input_ids.shape[1] :], skip_special_tokens=True)
        each = len(texts) // len(problems)
        scores = [
            arithmetic.reward(p.text, texts[i * each + k], str(p.answer)) for i, p in enumerate(problems) for k in range(each)
        ]
        return sum(scores) / len(scores)

    sampled = right(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=SAMPLES)
    return {"greedy": right(do_sample=False), "sampled": sampled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("validation", "test", "best"))
    parser.add_argument("paths", nargs="+", metavar="path")
    task, paths = vars(parser.parse_args()).values()
    if task == "best":
        runs = [Path(path) for path in paths]
        best = max(runs, key=lambda run: json.loads((run / "accuracy.json").read_text())["sampled"])
        print(yaml.safe_load((best / "config.yaml").read_text())["learner"]["lr"])
        return
    folder = Path(paths[-1])
    if (folder / "accuracy.json").exists():
        return
    model = find_model(paths[0], lambda *_: None) if len(paths) > 1 else checkpoint.find_all(folder)[-1] / "hf"
    folder.mkdir(exist_ok=True)
    result = measure(model, task)
    (folder / "accuracy.json").write_text(json.dumps(result))
    print(f"{folder.name}: {result['greedy']:.3f} greedy, {result['sampled']:.3f} at temperature 1 ({task})")


main()
