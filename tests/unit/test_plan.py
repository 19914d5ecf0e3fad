"""The dry run: sizes worked by hand, recipes composed on the real models' configs, and activations against what torch keeps."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from builders import compose
from rich.console import Console

from rlopt.config.compose import conf_dir
from rlopt.config.learners import LoraConfig
from rlopt.models.loading import Shape, shape_of
from rlopt.models.policy import Policy
from rlopt.run.memory import GIB, LearnerMemory, activations, engine_memory, learner_memory
from rlopt.run.objective import make_objective, reference_every
from rlopt.run.validate import dry_run

# As published with the models: hidden, intermediate, layers, heads, heads of keys and values, vocabulary, tied, parameters.
MODELS = {
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, 151936, True, 1_543_714_304),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14336, 32, 32, 8, 128256, False, 8_030_261_248),
    "xinlai/Qwen2-7B-SFT": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False, 7_615_616_512),
    "xinlai/Qwen2-72B-SFT": ("qwen2", 8192, 29568, 80, 64, 8, 152064, False, 72_706_203_648),
}
KEYS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
FULL = LoraConfig(0, 32.0, "all-linear")
"""No adapters."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each model that holds a config and nothing else."""
    found = {}
    for name, values in MODELS.items():
        found[name] = tmp_path_factory.mktemp("model")
        config = dict(zip((*KEYS, "vocab_size", "tie_word_embeddings"), values, strict=False))
        (found[name] / "config.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_from_the_config_alone(folders: dict[str, Path], name: str) -> None:
    assert shape_of(folders[name], FULL).parameters == MODELS[name][-1]


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (transformers.MixtralConfig(num_hidden_layers=1, intermediate_size=96, num_experts_per_tok=2), 2 * 96),
        (
            transformers.Qwen3MoeConfig(
                num_hidden_layers=1, intermediate_size=96, moe_intermediate_size=32, num_experts_per_tok=4
            ),
            4 * 32,
        ),
        (
            transformers.Qwen2MoeConfig(
                num_hidden_layers=1,
                intermediate_size=96,
                moe_intermediate_size=32,
                num_experts_per_tok=4,
                shared_expert_intermediate_size=48,
            ),
            4 * 32 + 48,
        ),
        (transformers.GPT2Config(n_layer=1), 4 * 768),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_token_of_a_mixture_is_as_wide_as_all_experts_that_it_visits(
    config: transformers.PretrainedConfig, width: int, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    assert shape_of(tmp_path, FULL).intermediate == width


RECIPES = {
    "gsm8k_qwen2.5_1.5b": ("grpo", "Qwen/Qwen2.5-1.5B-Instruct", "2 in all: 1 for engines, 1 for learners"),
    "math_llama3.1_8b": ("rec_oneside_nois", "meta-llama/Llama-3.1-8B-Instruct", "2 in all: 1 for engines, 1 for learners"),
    "step_dpo_qwen2_7b": ("step_dpo", "xinlai/Qwen2-7B-SFT", "8 in all: 0 for engines, 8 for learners"),
    "step_dpo_qwen2_72b": ("step_dpo", "xinlai/Qwen2-72B-SFT", "32 in all: 0 for engines, 32 for learners"),
    "gsm8k_qwen2.5_1.5b,one_gpu": ("red_weight", "Qwen/Qwen2.5-1.5B-Instruct", "1 in all: 0.4 for engines, 0.6 for learners"),
    "gsm8k_qwen2.5_1.5b,one_gpu,lora": (
        "grpo",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "1 in all: 0.4 for engines, 0.6 for learners",
    ),
    "math_llama3.1_8b,one_node": ("red_weight", "meta-llama/Llama-3.1-8B-Instruct", "8 in all: 4 for engines, 4 for learners"),
    "math_llama3.1_8b,two_nodes": ("grpo", "meta-llama/Llama-3.1-8B-Instruct", "16 in all: 8 for engines, 8 for learners"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_and_says_what_it_asks_for(folders: dict[str, Path], recipe: str) -> None:
    algo, model, gpus = RECIPES[recipe]
    composed = compose(f"+experiment=[{recipe}]", f"+algo={algo}")
    assert composed.model.path == model
    lines = dict(dry_run(compose(f"+experiment=[{recipe}]", f"+algo={algo}", f"model.path={folders[model]}"), Console()))
    assert lines["GPUs"] == gpus
    assert f"{MODELS[model][-1]:,} parameters" in lines["run"]


def test_every_recipe_is_tried() -> None:
    files = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    embedded = {"calculator", "guessing"}  # tests/real plays them
    assert files - embedded == {name for recipe in RECIPES for name in recipe.split(",")}


def test_memory_of_an_8b_model_on_four_ranks_by_hand(folders: dict[str, Path]) -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    config = compose("+experiment=[math_llama3.1_8b,one_node]", "+algo=grpo", f"model.path={folders[model]}")
    memory = learner_memory(config, shape_of(folders[model], FULL), 2, True)
    eight = 8_030_261_248 / 4
    assert (memory.weights, memory.reference, memory.gradients) == (eight * 2, eight * 2, eight * 4)
    assert memory.optimizer == eight * 12  # a float32 master copy and two moments
    # 32 layers, and what comes after them three times, keep 4,096 numbers of 2 bytes a token, and the last norm as many of 4.
    # One layer is there as a whole in the backward pass: 7 x 4,096 + 2 x 8 x 128 + 4 x 14,336 numbers, and two norms; and the
    # gradient of the head. That is more than the head takes: 10 bytes a logit, and twice its gradient.
    layer = 2 * (28672 + 2048 + 57344) + 2 * 4 * 4096
    assert 16384 * layer + 2 * 128256 * 4096 > 1024 * 128256 * 10 + 2 * 2 * 128256 * 4096
    after = 2 * 35 * 4096 + 4 * 4096
    assert memory.activations == 16384 * (after + layer) + 2 * 128256 * 4096
    # ZeRO 3 adds up 50 million gradients at a time in float32, and gathers a billion weights at a time.
    assert memory.buffers == 4 * 50_000_000 + 2 * 1_000_000_000
    assert memory.total < 80 * GIB
    assert engine_memory(config, shape_of(folders[model], FULL), 2).per_token == 2 * 32 * 8 * 128 * 2


def test_a_run_without_a_reference_holds_none(folders: dict[str, Path]) -> None:
    shape, config = shape_of(folders[next(iter(MODELS))], FULL), compose("+algo=grpo")
    never, always = (learner_memory(config, shape, 4, reference) for reference in (False, True))
    assert (never.reference, always.reference) == (0, shape.parameters * 4)


def test_what_waits_in_host_memory_is_not_counted_on_the_card(folders: dict[str, Path]) -> None:
    shape = shape_of(folders["xinlai/Qwen2-7B-SFT"], FULL)
    keys = ("+algo=grpo", "cluster.gpus_per_learner=1", "learner.workers=8", "learner.gradient_checkpointing=true")

    def memory(*more: str) -> LearnerMemory:
        return learner_memory(compose(*keys, *more), shape, 2, True)

    here, away = memory("learner.zero_stage=2"), memory("learner.zero_stage=2", "learner.offload=[optimizer,reference]")
    assert (away.optimizer, away.gradients, away.weights) == (0, 0, 2 * shape.parameters)
    assert away.reference == max(0, here.reference - here.activations)  # it is there when activations are not
    all_away = memory("learner.zero_stage=3", "learner.offload=[optimizer,parameters,reference]")
    assert all_away.total == all_away.activations + all_away.buffers  # what is gathered is gathered to the card
    on_cpu = learner_memory(compose("+algo=grpo", "learner.offload=[optimizer]"), shape, 2, True)
    assert on_cpu.optimizer == 12 * shape.parameters  # a CPU has no other memory


@pytest.mark.parametrize(
    ("keys", "every"),
    [
        (["+algo=grpo"], 1),
        (["+algo=grpo", "algo.kl.every=5"], 5),
        (["+algo=grpo", "algo.kl.every=0"], 0),
        (["+algo=dpo", "data.train=x"], 1),
        (["+algo=step_dpo", "data.train=x"], 1),
        (["+algo=sft", "data.train=x"], 0),
    ],
)
def test_the_reference_is_there_for_objectives_that_need_it(keys: list[str], every: int) -> None:
    config = compose(*keys)
    assert reference_every(config, make_objective(config)) == every


def test_adapters_spare_the_reference_the_optimizer_and_what_is_sent(folders: dict[str, Path]) -> None:
    model = "Qwen/Qwen2.5-1.5B-Instruct"
    config = compose("+experiment=[gsm8k_qwen2.5_1.5b,one_gpu,lora]", "+algo=grpo", f"model.path={folders[model]}")
    # 28 blocks: q and o are 1,536 x 1,536, k and v 1,536 x 256, the feed-forward part three times 1,536 x 8,960; rank 32.
    adapters = 28 * 32 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    memory = learner_memory(config, shape_of(folders[model], config.learner.lora), 2, True)
    assert memory.weights == (1_543_714_304 + adapters) * 2
    # This recipe has ZeRO 1: gradients in float32, and those of a micro-batch in bfloat16.
    assert (memory.reference, memory.gradients, memory.optimizer) == (0, adapters * 6, adapters * 12)
    lines = dict(dry_run(config, Console()))
    assert lines["adapters"] == f"rank 32, {adapters:,} parameters, which alone learn and are sent"
    assert "by shm, 70.4 MiB each" in lines["sync"]
    assert "40% of the card, asleep while the learner learns" in lines["engines"]


def test_zero_stages_share_optimizer_then_gradients_then_weights(folders: dict[str, Path]) -> None:
    shape = Shape(parameters=8, trainable=8, layers=1, hidden=1, intermediate=1, kv_heads=1, head_dim=1, vocabulary=1)
    found = []
    for stage in range(4):
        config = compose("+algo=grpo", "learner.workers=2", f"learner.zero_stage={stage}")
        memory = learner_memory(config, shape, 4, True)
        found.append((memory.weights, memory.reference, memory.gradients, memory.optimizer, memory.buffers))
    # ZeRO has a master copy in float32 too, and a bucket for all 8, which its third stage also gathers at a time. Its second
    # has half of the gradients on each rank, twice.
    assert found == [(32, 32, 32, 64, 0), (32, 32, 32, 48, 32), (32, 32, 32, 48, 32), (16, 16, 16, 48, 64)]


def test_settings_handed_to_deepspeed_change_the_plan() -> None:
    shape = Shape(parameters=8, trainable=8, layers=1, hidden=1, intermediate=1, kv_heads=1, head_dim=1, vocabulary=1)
    given = "+learner.deepspeed.zero_optimization"
    keys = [f"{given}.reduce_bucket_size=3", f"{given}.stage3_max_live_parameters=5", "learner.zero_stage=3"]
    assert learner_memory(compose("+algo=grpo", *keys), shape, 2, True).buffers == 3 * 4 + 5 * 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_torch_keeps(tmp_path: Path, checkpointing: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
    config = transformers.Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=32, max_position_embeddings=512)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    policy = Policy(tmp_path, torch.float32, chunk=4096, recompute=checkpointing).train()
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randint(0, 32, (4, 256))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(tokens, torch.ones_like(tokens), 1.0)
    learner = compose("+algo=grpo", f"learner.token_budget={tokens.numel()}").learner
    expected = (
        activations(shape_of(tmp_path, FULL), learner, 4, on_gpu=False) - (tokens.numel() * 12 + 64 * 4) * 32
    )  # the head's
    if checkpointing:  # the one layer that is there as a whole comes in the backward pass
        expected = tokens.numel() * 64 * (8 + 3) * 4
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


def test_a_model_that_cannot_be_looked_at_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from rlopt.core.errors import RloptError

    with pytest.raises(
        RloptError, match=r"model.path=nobody/nothing: its config cannot be read \(.*\); check name and network"
    ):
        dry_run(compose("+algo=grpo", "model.path=nobody/nothing"), Console())
