"""What `rlopt.evaluate` reaches of the engine alone, on the same prompts, in turn: `python examples/speed/evaluation.py`.

The engine alone is vLLM's own offline `LLM.generate`, asked for the same number of answers of the same prompts at once, with no
rewards and no files; once as it comes, and once telling the log-probability of every token, as rlopt has it do. Starting is not
counted.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

ROUNDS, PROMPTS, ANSWERS, TOKENS, SEQUENCES = 3, 500, 8, 72, 256
SETTINGS = ["model.path=tiny_s", "data.eval=arithmetic", f"eval.limit={PROMPTS}", f"eval.samples={ANSWERS}"]
SETTINGS += ["eval.greedy=false", "eval.temperature=1.0", "eval.top_p=1.0", f"rollout.max_num_seqs={SEQUENCES}"]


def evaluate(folder: Path) -> float:
    """Tokens a second as `rlopt.evaluate` prints them; its answers are left in `folder`."""
    line = [sys.executable, "-m", "rlopt.evaluate", *SETTINGS, f"evaluate.out={folder / 'numbers.json'}"]
    done = subprocess.run(line, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    found = re.search(r"([\d,]+) tokens/s", done.stdout)
    assert found, done.stdout
    return float(found[1].replace(",", ""))


def alone(prompts: list[str], logprobs: int | None) -> float:
    """Tokens a second of vLLM by itself, in this process."""
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    from rlopt.models.loading import find_model

    folder = find_model("tiny_s", lambda *_: None)
    llm = LLM(
        str(folder),
        dtype="float32",
        max_num_seqs=SEQUENCES,
        max_model_len=128,
        kv_cache_memory_bytes=2**28,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    params = SamplingParams(n=ANSWERS, temperature=1.0, max_tokens=TOKENS, seed=42, logprobs=logprobs, flat_logprobs=True)
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took = time.monotonic() - began
    return sum(len(answer.token_ids) for output in outputs for answer in output.outputs) / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("alone", nargs="*", help=argparse.SUPPRESS)  # how it calls itself, for a process of its own
    if asked := parser.parse_args().alone:
        print(alone(json.loads(Path(asked[0]).read_text()), json.loads(asked[1])))
        return
    ways = {"vLLM alone": None, "vLLM alone, with log-probabilities": 0}
    rates: dict[str, list[float]] = {name: [] for name in ("rlopt.evaluate", *ways)}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(ROUNDS):
            folder = Path(name) / str(turn)
            folder.mkdir()
            rates["rlopt.evaluate"].append(evaluate(folder))
            rows = [json.loads(line) for line in (folder / "numbers.answers.jsonl").read_text().splitlines()]
            file = folder / "prompts.json"
            file.write_text(json.dumps(list(dict.fromkeys(row["prompt"] for row in rows))))
            for label, logprobs in ways.items():
                line = [sys.executable, __file__, str(file), json.dumps(logprobs)]
                done = subprocess.run(line, check=True, capture_output=True, text=True)
                rates[label].append(float(done.stdout.splitlines()[-1]))
    best = max(mean(values) for values in rates.values())
    table = Table(title=f"{PROMPTS} prompts x {ANSWERS} answers, {ROUNDS} rounds in turn", title_justify="left")
    for column in ("", "tokens/s", "least to most", "of the best"):
        table.add_column(column, justify="left" if not column else "right")
    for label, values in rates.items():
        table.add_row(label, f"{mean(values):,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", f"{mean(values) / best:.0%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
