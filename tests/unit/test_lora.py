"""Adapters: the merge worked by hand, and a small model with them and without."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rlopt.config.learners import LoraConfig
from rlopt.core.errors import RloptError
from rlopt.models import lora
from rlopt.models.loading import shape_of
from rlopt.models.policy import Policy, write_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LAYERS = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SIZES, vocab_size=40, max_position_embeddings=64, tie_word_embeddings=True)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_an_adapter_is_added_times_its_scale() -> None:
    weights = {"a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b.weight": torch.ones(2, 2)}
    adapters = {"a.weight.lora_A": torch.tensor([[1.0, 10.0]]), "a.weight.lora_B": torch.tensor([[1.0], [2.0]])}
    found = dict(lora.merged(weights.items(), dict(lora.scaled(adapters.items(), 0.5))))
    assert found["a.weight"].tolist() == [[1.5, 7.0], [4.0, 14.0]]  # + 0.5 * [[1, 10], [2, 20]]
    assert found["b.weight"] is weights["b.weight"]


def test_an_adapter_without_its_other_half_changes_nothing_and_one_without_a_weight_is_an_error() -> None:
    weights = {"a.weight": torch.ones(2, 2)}
    assert dict(lora.merged(weights.items(), {"a.weight.lora_A": torch.ones(1, 2)})) == weights
    with pytest.raises(KeyError, match="z.weight has an adapter, and is not a weight of the model"):
        dict(lora.merged(weights.items(), {"z.weight.lora_A": torch.ones(1, 2), "z.weight.lora_B": torch.ones(2, 1)}))


def test_the_sum_is_rounded_once_to_the_type_of_the_weight() -> None:
    weights = {"a.weight": torch.ones(1, 1, dtype=torch.bfloat16)}
    thin = {"a.weight.lora_A": torch.tensor([[2.0**-8], [2.0**-17]]), "a.weight.lora_B": torch.ones(1, 2)}
    thin = {name: tensor.bfloat16() for name, tensor in thin.items()}
    (found,) = dict(lora.merged(weights.items(), thin)).values()
    # The steps of bfloat16 above 1 are 2^-7: 1 + 2^-8 + 2^-17 goes up. Rounded twice it would be 1 + 2^-8, and go to 1.
    assert (found.dtype, found.item()) == (torch.bfloat16, 1 + 2.0**-7)


def scores(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy(tokens, torch.ones_like(tokens), 1.0)[0]


def test_adapters_begin_as_nothing_then_alone_learn_and_asleep_leave_the_model_as_it_was(folder: Path) -> None:
    policy, tokens = Policy(folder, torch.float32, chunk=64), torch.randint(0, 40, (2, 9))
    names, before = [name for name, _ in policy.lm.named_parameters()], scores(policy, tokens)
    lora.adapt(policy.lm, LoraConfig(4, 8.0, "all-linear"))
    frozen, adapters = lora.split(policy.lm)
    assert [name for name, _ in frozen] == names
    assert len(adapters) == 2 * 7 * 2  # halves, linear layers of a block, blocks
    assert {p.requires_grad for _, p in frozen} == {False}
    assert torch.equal(scores(policy, tokens), before)

    policy(tokens, torch.ones_like(tokens), 1.0)[0].sum().backward()
    optimizer = torch.optim.SGD([p for _, p in adapters], lr=0.1)
    optimizer.step()
    assert not torch.equal(scores(policy, tokens), before)
    with lora.adapters_disabled(policy.lm):
        assert torch.equal(scores(policy, tokens), before)
    assert {p.requires_grad for _, p in adapters} == {True}
    assert not torch.equal(scores(policy, tokens), before)


def test_the_merged_model_and_what_peft_loads_score_as_the_adapted_one_does(folder: Path, tmp_path: Path) -> None:
    policy, tokens = Policy(folder, torch.float32, chunk=64), torch.randint(0, 40, (2, 9))
    lora.adapt(policy.lm, LoraConfig(4, 8.0, ["q_proj", "v_proj"]))
    frozen, adapters = lora.split(policy.lm)
    for _, parameter in adapters:
        torch.nn.init.normal_(parameter, std=0.3)
    learned = {name: parameter.detach().clone() for name, parameter in adapters}
    whole = dict(lora.merged(((n, p.detach()) for n, p in frozen), dict(lora.scaled(learned.items(), 8.0 / 4))))
    write_model(folder, torch.float32, whole, tmp_path / "hf")
    lora.write(policy.lm, learned, tmp_path / "adapter")

    said, initial = scores(policy, tokens), load_file(folder / "model.safetensors")
    assert (scores(Policy(tmp_path / "hf", torch.float32, chunk=64), tokens) - said).abs().max() < 1e-5
    changed = {
        name for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items() if not tensor.equal(initial[name])
    }
    assert changed == {f"model.layers.{i}.self_attn.{name}.weight" for i in range(2) for name in ("q_proj", "v_proj")}
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    with torch.no_grad():
        logprobs = theirs(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert (logprobs - said[:, 1:]).abs().max() < 1e-5


def test_what_adapts_is_counted_from_the_config_alone(folder: Path) -> None:
    # Rank 2, two blocks: q and o are 32 x 32, k and v 32 x 16, the feed-forward part three times 32 x 48.
    by_hand = 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert shape_of(folder, LoraConfig(2, 8.0, "all-linear")).trainable == by_hand
    full = shape_of(folder, LoraConfig(0, 32.0, "all-linear"))
    assert full.trainable == full.parameters


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=40)
    config.save_pretrained(tmp_path)
    with pytest.raises(RloptError, match="learner.lora.rank=2: the model has no linear layers to adapt; set it to 0"):
        shape_of(tmp_path, LoraConfig(2, 8.0, "all-linear"))


@pytest.mark.parametrize("name", ["qproj", "lm_head", "embed_tokens"])
def test_a_layer_that_cannot_be_adapted_is_answered_with_those_that_can(folder: Path, name: str) -> None:
    with pytest.raises(RloptError, match=f"learner.lora.targets=.*: the model has no linear layer {name}; .*some of {LAYERS}"):
        shape_of(folder, LoraConfig(2, 8.0, ["q_proj", name]))
