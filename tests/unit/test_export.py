"""An exported folder: proved against the learner's word, with a card; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlopt.core.errors import RloptError
from rlopt.diagnosis.curves import PANELS
from rlopt.models import tiny
from rlopt.models.policy import Policy
from rlopt.run.export import export

TEXTS = [[5, 6, 7, 8, 9], [9, 8, 7]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint of a random model, which says what a learner would have said."""
    folder = tmp_path / "run"
    hf = folder / "checkpoints" / "step_3" / "hf"
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, vocab_size=32)).save_pretrained(hf)
    tiny.tokenizer().save_pretrained(hf)
    policy, said = Policy(hf, torch.float32, chunk=4096), []
    for text in TEXTS:
        mask = torch.tensor([[0] + [1] * (len(text) - 1)])
        said.append(policy(torch.tensor([text]), mask, 1.0)[0][0, 1:].tolist())
    (hf.parent / "state.json").write_text(json.dumps({"canary": {"texts": TEXTS, "logprobs": said}}))
    (hf.parent / "manifest.json").write_text(json.dumps({"step": 3, "files": {}}))
    config: dict[str, Any] = {"run": {"name": "mine"}, "algo": {"name": "grpo"}, "model": {"path": "owner/base"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": {"total_steps": 3}}))
    rows = [{"step": step, **dict.fromkeys(PANELS, step / 10)} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_is_written_whole_and_scores_as_the_learner_did(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out", shard_size="20KB")
    assert done.difference < 1e-5
    assert done.tokens == 6
    names = {path.name for path in done.folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md", "curves.png"} <= names
    assert "model.safetensors.index.json" in names  # sharded
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(done.folder)
    assert model.config.use_cache
    assert transformers.AutoTokenizer.from_pretrained(done.folder).encode("1+1=")


def test_the_card_has_what_the_hub_reads_the_curves_and_the_config(run: Path, tmp_path: Path) -> None:
    card = (export(run, tmp_path / "out").folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "tags": ["rlopt", "reinforcement-learning", "grpo"],
        "base_model": "owner/base",
    }
    assert "| Training Reward (`reward/mean`) | 0.2 | 0.2 |" in card
    assert "learner step 3 of 3" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["algo"] == {"name": "grpo"}


def test_a_model_that_is_not_what_the_learner_was_is_refused_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "step_3" / "hf" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] += 0.1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RloptError, match=r"the exported model differs from the learner by .* nats on a token"):
        export(run, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_model_with_scores_that_are_not_finite_is_refused(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "step_3" / "hf" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(RloptError, match=r"differs from the learner by nan nats"):
        export(run, tmp_path / "out")


def test_what_cannot_be_exported_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for which, out, message in (
        ("latest", "there", "there: is there already"),
        ("7", "out", "has no checkpoint 7; one of 3, latest"),
        ("best", "out", "has no checkpoint best"),
    ):
        with pytest.raises(RloptError, match=message):
            export(run, tmp_path / out, which)
    with pytest.raises(RloptError, match=r"config.yaml/out: cannot be written \(.*\); choose another place"):
        export(run, run / "config.yaml" / "out")
    with pytest.raises(RloptError, match="holds no complete checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (run / "checkpoints" / "step_3" / "state.json").write_text("{}")
    with pytest.raises(RloptError, match="was saved without the learner's word"):
        export(run, tmp_path / "out")


def test_a_disk_that_is_full_is_told_in_one_line_and_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RloptError, match=r"^--out=.*out: cannot be written \(.*No space left on device.*\); choose another"):
        export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
