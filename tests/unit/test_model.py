"""The policy against transformers' own forward pass, in many architectures; and models as they are written."""

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import modeling_outputs

from rlopt.core.errors import RloptError
from rlopt.models import compiled, tiny
from rlopt.models.attention import IN_FLOAT32
from rlopt.models.compiled import FusedTokenScores, compile_policy
from rlopt.models.head import TokenScores
from rlopt.models.loading import context_length, find_model, load_tokenizer
from rlopt.models.policy import Policy, own_logprobs, refuse_other_logits, try_to_save, write_model

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "Gemma 2": transformers.Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=3.0),
    "Granite": transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
    "Cohere": transformers.CohereConfig(**SIZES, logit_scale=0.25),
    "GPT-2": transformers.GPT2Config(**GPT),
    "GPT-J, whose head has a bias": transformers.GPTJConfig(**GPT, rotary_dim=8),
    "OPT": transformers.OPTConfig(
        **{k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        layerdrop=0.5,
    ),
    "Llama": transformers.LlamaConfig(**SIZES),
    "Mixtral, whose router jitters": transformers.MixtralConfig(**SIZES, num_local_experts=4, router_jitter_noise=0.3),
    "Qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen2 with dropout": transformers.Qwen2Config(**SIZES, attention_dropout=0.3),
    "Qwen3": transformers.Qwen3Config(**SIZES, head_dim=16),
}


def saved(config: transformers.PretrainedConfig, folder: Path) -> Any:
    """A model with random weights and a large head, saved to `folder`, as transformers loads it."""
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(8)
    lm.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("recompute", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_while_learning_are_those_of_the_models_own_forward_pass(
    name: str, recompute: bool, tmp_path: Path
) -> None:
    lm, policy = saved(CONFIGS[name], tmp_path), Policy(tmp_path, torch.float32, 5, recompute).train()
    ids = torch.randint(2, 64, (3, 9))
    mask = torch.ones(ids.shape)
    mask[:, :2] = 0
    said, entropy = policy(ids, mask, 1.0)
    own = own_logprobs(lm, ids)
    assert (said[:, 2:] - own[:, 1:]).abs().max() < 1e-5
    everything = torch.log_softmax(lm(ids).logits[:, 1:-1], -1)
    assert (entropy[:, 2:] + (everything.exp() * everything).sum(-1)).abs().max() < 1e-5
    assert (said[:, :2] == 0).all()
    refuse_other_logits(policy, policy.lm, "cpu")

    said.sum().backward()
    own[:, 1:].sum().backward()
    theirs = dict(lm.named_parameters())
    for parameter_name, parameter in policy.lm.named_parameters():
        expected = theirs[parameter_name].grad
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4)


PACKED = {name: config for name, config in CONFIGS.items() if name != "OPT"}
"""OPT takes places from an attention mask, and not from what it is told."""


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_have_the_log_probabilities_and_gradients_of_padded_ones(name: str, tmp_path: Path) -> None:
    saved(CONFIGS[name], tmp_path)
    packed, plain = (Policy(tmp_path, torch.float32, 5, packed=way).train() for way in (True, False))
    ids, mask = torch.randint(2, 64, (3, 9)), torch.zeros(3, 9)
    mask[0, 2:], mask[1, 1:4] = 1, 1  # the third has nothing to learn from
    said, theirs = packed(ids, mask, 1.0), plain(ids, mask, 1.0)
    for one, other in zip(said, theirs, strict=True):
        assert (one - other).abs().max() < 1e-5
        one.sum().backward(retain_graph=True)
        other.sum().backward(retain_graph=True)
    for parameter, other in zip(packed.lm.parameters(), plain.lm.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4)
    refuse_other_logits(packed, packed.lm, "cpu")


def test_a_model_whose_packed_sequences_would_read_each_other_is_refused(tmp_path: Path) -> None:
    saved(CONFIGS["OPT"], tmp_path)
    policy = Policy(tmp_path, torch.float32, 5, packed=True).train()
    with pytest.raises(RloptError, match="OPTForCausalLM gives a token another log-probability"):
        refuse_other_logits(policy, policy.lm, "cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_leaves_no_tensor_in_a_circle_that_only_the_garbage_collector_would_free(name: str, tmp_path: Path) -> None:
    saved(CONFIGS[name], tmp_path)
    policy = Policy(tmp_path, torch.float32, 5).train()
    gc.collect()
    gc.disable()  # it comes seldom in a learner, and what waits for it are hidden states of whole micro-batches
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        said, entropy = policy(torch.arange(14).reshape(2, 7), torch.ones(2, 7), 1.0)
        (said.sum() + entropy.sum()).backward()
        del said, entropy
        gc.collect()
        assert [tuple(one.shape) for one in gc.garbage if isinstance(one, Tensor)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_the_temperature_divides_the_logits_after_all_that_the_model_does_to_them(tmp_path: Path) -> None:
    lm, policy = saved(CONFIGS["Gemma 2"], tmp_path), Policy(tmp_path, torch.float32, 4096)
    ids = torch.randint(2, 64, (1, 5))
    expected = torch.log_softmax(lm(ids).logits[:, :-1] / 0.5, -1).gather(-1, ids[:, 1:, None])[..., 0]
    assert (policy(ids, torch.ones(1, 5), 0.5)[0][:, 1:] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("ours", [TokenScores, FusedTokenScores])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("read", ["log-probability", "entropy", "both"])
def test_the_gradient_of_token_scores_is_that_of_the_plain_formulas(
    read: str, temperature: float, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_fused", lambda function: function)  # compiled they are in test_ranks.py
    logits = torch.randn(5, 11, dtype=torch.float64) * 3
    targets, pull = torch.tensor([0, 10, 3, 3, 7]), torch.linspace(-1, 2, 5)

    def gradient(scores: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = scores(leaf)
        loss = {"log-probability": logprobs * pull, "entropy": entropy * pull, "both": (logprobs - 0.3 * entropy) * pull}[read]
        return torch.autograd.grad(loss.sum(), leaf)[0]

    def plain(leaf: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(leaf / temperature, -1)
        return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    found = gradient(lambda leaf: ours.apply(leaf, targets, temperature))
    torch.testing.assert_close(found, gradient(plain), rtol=1e-5, atol=1e-6)
    assert found.abs().max() > 0.1
    for said, wanted in zip(ours.apply(logits, targets, temperature), plain(logits), strict=True):
        torch.testing.assert_close(said, wanted.float(), rtol=1e-5, atol=1e-6)


def test_fused_scores_of_bfloat16_logits_differ_from_the_others_by_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_fused", lambda function: function)
    logits, targets = (torch.randn(64, 99) * 4).bfloat16(), torch.arange(64)
    logits[torch.arange(64), targets] += 9  # chosen with a probability near 1, of which 1 - p is little
    found = []
    for scores in (TokenScores, FusedTokenScores):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = scores.apply(leaf, targets, 0.7)
        (logprobs - 0.1 * entropy).sum().backward()
        found.append((logprobs.detach(), entropy.detach(), leaf.grad))
    (logprobs, entropy, gradient), (fused_logprobs, fused_entropy, fused_gradient) = found
    torch.testing.assert_close(fused_logprobs, logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused_entropy, entropy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused_gradient, gradient, rtol=2**-7, atol=1e-6)  # bfloat16 has 8 bits


def test_a_bfloat16_model_on_a_cpu_attends_in_float32_and_scores_as_it_does_otherwise(tmp_path: Path) -> None:
    saved(CONFIGS["Qwen2"], tmp_path)
    policy = Policy(tmp_path, torch.bfloat16, 5)
    assert policy.lm.config._attn_implementation == IN_FLOAT32
    assert Policy(tmp_path, torch.bfloat16, 5, device="cuda").lm.config._attn_implementation == "sdpa"
    ids = torch.randint(2, 64, (3, 9))
    with torch.no_grad():
        own = own_logprobs(policy.lm, ids)
        policy.lm.set_attn_implementation("sdpa")
        assert 0 < (own - own_logprobs(policy.lm, ids)).abs().max() < 0.2  # bfloat16 logits near 16 are 0.06 apart


class Odd(transformers.Qwen2ForCausalLM):
    """Its forward pass does something before its body that `Policy` cannot know."""

    def forward(self, input_ids: Tensor, **options: Any) -> modeling_outputs.CausalLMOutputWithPast:
        return super().forward((input_ids + 1) % 64, **options)  # type: ignore[no-any-return]


class Strange(transformers.Qwen2ForCausalLM):
    """It asks its body for what no body says."""

    def forward(self, input_ids: Tensor, **options: Any) -> modeling_outputs.CausalLMOutputWithPast:
        return modeling_outputs.CausalLMOutputWithPast(logits=self.lm_head(self.model.layers[0](input_ids)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Odd, "model.path: Odd gives a token another log-probability in its own forward pass than while it learns, by"),
        (Strange, "model.path: a policy cannot be made of Strange"),
    ],
)
def test_a_model_whose_way_is_unknown_is_refused_by_name(kind: type, message: str, tmp_path: Path) -> None:
    saved(CONFIGS["Qwen2"], tmp_path)
    policy = Policy(tmp_path, torch.float32, 5)
    policy.lm.__class__ = kind
    with pytest.raises(RloptError, match=message):
        refuse_other_logits(policy, policy.lm, "cpu")


def test_a_weight_that_the_files_lack_is_not_made_up(tmp_path: Path) -> None:
    saved(CONFIGS["Llama"], tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: kept for name, kept in weights.items() if ".1.mlp" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(RloptError, match=r"its files lack 3 weight\(s\), such as model.layers.1.mlp.down_proj.weight, which"):
        Policy(tmp_path, torch.float32, 5)
    asks_for(tmp_path, num_hidden_layers=3)
    with pytest.raises(RloptError, match=r"its files lack 12 weight\(s\)"):
        Policy(tmp_path, torch.float32, 5)


@pytest.mark.parametrize(("changed", "name", "found", "wanted"), [
    ({"vocab_size": 5}, "lm_head.weight", "(64, 32)", "(5, 32)"),
    ({"intermediate_size": 65}, "model.layers.0.mlp.down_proj.weight", "(32, 64)", "(32, 65)"),
])  # fmt: skip
def test_weights_of_another_size_than_the_config_asks_for_are_refused_by_name(
    tmp_path: Path, changed: dict[str, int], name: str, found: str, wanted: str
) -> None:
    saved(CONFIGS["Llama"], tmp_path)
    assert find_model(str(tmp_path), lambda *_: None) == tmp_path
    asks_for(tmp_path, **changed)
    with pytest.raises(RloptError) as refused:
        find_model(str(tmp_path), lambda *_: None)
    assert f"model.path={tmp_path}: {name} has the size {found}, and config.json asks for {wanted}; give" in str(refused.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_model_of_any_kind_is_found_and_one_with_a_layer_less_is_not(name: str, tmp_path: Path) -> None:
    saved(CONFIGS[name], tmp_path)
    find_model(str(tmp_path), lambda *_: None)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in sorted(weights) if ".1." in key and "experts" not in key)
    save_file({key: kept for key, kept in weights.items() if key != gone}, tmp_path / "model.safetensors")
    with pytest.raises(RloptError, match=r"its files lack 1 weight\(s\), such as .*\.1\."):
        find_model(str(tmp_path), lambda *_: None)


def test_weights_that_are_not_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(CONFIGS["Llama"], tmp_path)
    capsys.readouterr()  # transformers' bars
    find_model(str(tmp_path), lambda *_: None)
    assert not capsys.readouterr().err
    asks_for(tmp_path, num_hidden_layers=1)
    find_model(str(tmp_path), lambda *_: None)
    told = "9 weight(s) in its files are not used, such as model.layers.1.input_layernorm.weight: config.json asks for none"
    assert f"warning: model.path={tmp_path}: {told} of them\n" == capsys.readouterr().err


def asks_for(folder: Path, **changed: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    saved(CONFIGS["Qwen2"], tmp_path)
    with pytest.raises(RloptError, match="its tokenizer knows no token; are tokenizer.json and its like in the folder"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_knows_how_many_tokens_the_model_has_and_may_not_end_texts_with_another(tmp_path: Path) -> None:
    saved(CONFIGS["Qwen2"], tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).rlopt_known == 64
    asks_for(tmp_path, vocab_size=1)
    with pytest.raises(RloptError, match=r"its tokenizer ends texts with token 1, and the model's embeddings have 1; resize"):
        load_tokenizer(tmp_path)


def test_a_written_model_has_the_dropout_and_the_generation_config_that_it_came_with(tmp_path: Path) -> None:
    saved(CONFIGS["Qwen2 with dropout"], tmp_path / "model")
    odd = '{"do_sample": false, "temperature": 0.9, "eos_token_id": 1}'
    (tmp_path / "model" / "generation_config.json").write_text(odd)
    policy = Policy(tmp_path / "model", torch.float32, 5)
    weights = {name: parameter.detach() for name, parameter in policy.lm.named_parameters()}
    write_model(tmp_path / "model", torch.float32, weights, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["attention_dropout"], config["use_cache"], config["dtype"]) == (0.3, True, "float32")
    assert (tmp_path / "hf" / "generation_config.json").read_text() == odd
    ids = torch.randint(0, 64, (2, 7))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        assert (own_logprobs(again, ids) - policy(ids, torch.ones(2, 7), 1.0)[0][:, 1:]).abs().max() < 1e-5


class Unwritable:
    """A tokenizer that transformers loads and cannot save."""

    def save_pretrained(self, folder: str) -> None:
        raise ValueError("no vocabulary\nfile")


def test_a_model_that_could_not_be_saved_later_is_refused_before_it_learns(tmp_path: Path) -> None:
    saved(CONFIGS["Llama"], tmp_path)
    try_to_save(tmp_path, torch.float32, tiny.tokenizer())
    with pytest.raises(RloptError, match=r"cannot be saved again \(ValueError: no vocabulary file\)"):
        try_to_save(tmp_path, torch.float32, Unwritable())


@pytest.mark.parametrize(("config", "positions"), [(CONFIGS["GPT-2"], 64), (transformers.BloomConfig(n_layer=1), None)])
def test_a_context_length_is_found_under_the_name_that_the_model_has_for_it(
    config: transformers.PretrainedConfig, positions: int | None, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    if positions:
        assert context_length(tmp_path) == positions
    else:
        with pytest.raises(RloptError, match="its config does not say how many positions it knows"):
            context_length(tmp_path)


def test_runs_that_begin_together_train_a_tiny_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLOPT_CACHE", str(tmp_path))
    began, trained = threading.Barrier(3), []

    def slowly(recipe: tiny.Recipe, folder: Path, progress: object, task: tiny.Task) -> None:
        time.sleep(0.2)
        trained.append(folder)
        folder.mkdir()

    monkeypatch.setattr(tiny, "train", slowly)

    def begin() -> Path:
        began.wait()
        return find_model("tiny_s", lambda *_: None)

    with ThreadPoolExecutor(3) as pool:
        found = [task.result() for task in [pool.submit(begin) for _ in range(3)]]
    assert trained == [found[0]]
    assert set(found) == set(trained)


def test_a_tiny_model_that_is_there_is_found_without_writing_to_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLOPT_CACHE", str(tmp_path))
    monkeypatch.setattr(tiny, "train", lambda recipe, folder, progress, task: folder.mkdir())
    made = find_model("tiny_s", lambda *_: None)
    for file in tmp_path.glob("*.lock"):
        file.unlink()
    assert find_model("tiny_s", lambda *_: None) == made
    assert list(tmp_path.iterdir()) == [made]


def test_layers_are_compiled_in_place_and_keep_the_names_of_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", asked := str(tmp_path / "as the user says"))
    policy, other = (Policy(saved_in(tmp_path), torch.float32, 16) for _ in range(2))
    monkeypatch.setenv("CXX", str(compiler := tmp_path / "compiler"))
    with pytest.raises(RloptError, match=r"compile=true: needs a C\+\+ compiler, and .*compiler is not there; install"):
        compile_policy(policy, "cpu")
    compiler.touch(mode=0o700)
    compile_policy(policy, "cpu")
    assert policy.lm.base_model._compiled_call_impl is not None
    assert other.lm.base_model._compiled_call_impl is None
    assert list(policy.state_dict()) == list(other.state_dict())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == asked
    monkeypatch.setenv("RLOPT_CACHE", str(tmp_path / "cache"))
    for torchs in ("/tmp/torchinductor_somebody", None):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", torchs) if torchs else monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        compile_policy(other, "cpu")
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled")


def saved_in(folder: Path) -> Path:
    saved(CONFIGS["Qwen2"], folder / "model")
    return folder / "model"


def test_a_cache_that_cannot_be_written_is_refused_before_a_tiny_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLOPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RloptError, match=r"RLOPT_CACHE=.*file: cannot be written \(.+\); name a folder that can"):
        find_model("tiny_s", lambda *_: None)
