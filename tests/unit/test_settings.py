"""From the command line to the typed config, and every refusal in one line."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from builders import compose, composed, terms
from omegaconf import OmegaConf

from rlopt.config.cli import at_home as arguments_at_home
from rlopt.config.compose import algorithms
from rlopt.config.passthrough import refuse_unknown
from rlopt.config.synonyms import MEANINGS
from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError
from rlopt.objectives.grpo import GRPO
from rlopt.run.objective import make_objective, make_terms


def make_everything(*overrides: str) -> None:
    config = compose(*overrides)
    make_objective(config)
    make_terms(config)


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_composes_and_its_yaml_has_the_objectives_fields(name: str) -> None:
    config = compose(f"+algo={name}")
    assert config.algo.name == name
    assert asdict(make_objective(config)) == config.algo.options  # type: ignore[call-overload]


def test_the_defaults_are_samplers_that_are_20_steps_behind() -> None:
    config = compose("+algo=grpo")
    assert (config.sync.interval, config.sync.offset, config.trainer.total_steps) == (20, 0, 400)
    assert (config.data.prompts_per_step, config.group_size, config.rollout.temperature) == (16, 8, 1.0)
    assert make_terms(config) == terms(limit=72)
    assert make_objective(config) == GRPO(0.2, 0.2, "population", "token_mean")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "algo: not given; append one with +algo=NAME, where NAME is one of a3po, "),
        (["+algo=gpro"], "algo=gpro: no such algorithm; one of a3po, "),
        (["algo=grpo"], "algo: append it with a plus, +algo=NAME"),
        (["+algo=grpo", "sync.intervall=3"], "sync.intervall: no such key, did you mean sync.interval"),
        (["+algo=grpo", "+sync.intervall=3"], "sync.intervall=3: no such key"),
        (["+algo=grpo", "sync.interval=often"], "sync.interval=often: input should be a valid integer"),
        (["+algo=grpo", "sync.interval=0"], "sync.interval=0: must be at least 1"),
        (["+algo=grpo", "sync.max_lag=18"], "sync.max_lag=18: sync.interval=20 and sync.offset=0 reach lag 19; raise it, or"),
        (["+algo=grpo", "sync.mode=async"], "sync.max_lag=None: sync.mode=async needs a bound"),
        (
            ["+algo=grpo", "sync.mode=async", "sync.max_lag=8"],
            "sync.max_lag=8: sync.interval=20 and sync.offset=0 reach lag 19",
        ),
        (["+algo=grpo", "sync.mode=async", "sync.max_lag=30", "sync.offset=1"], "sync.offset=1: is of sync.mode=lockstep"),
        (
            ["+algo=grpo", "sync.mode=async", "sync.interval=1", "sync.max_lag=8", "rollout.sleep=true"],
            "rollout.sleep=True: needs engines that are idle between two synchronizations",
        ),
        (["+algo=dpo", "data.train=x.jsonl", "rollout.sleep=true"], "rollout.sleep=True: needs engines"),
        (
            ["+algo=grpo", "learner.lora.alpha=64.0"],
            "learner.lora.alpha=64.0: means nothing without learner.lora.rank; set that",
        ),
        (["+algo=grpo", "learner.lora.rank=-1"], "learner.lora.rank=-1: must be 0 (off: all weights learn) or more"),
        (
            ["+algo=grpo", "learner.lora.rank=8", "learner.lora.targets=q_proj"],
            "learner.lora.targets=q_proj: give all-linear, or a list",
        ),
        (
            ["+algo=grpo", "learner.lora.rank=8", "sync.backend=nccl", "cluster.gpus_per_engine=1"],
            "sync.backend=nccl: adapters (learner.lora) travel through shared memory; leave it out",
        ),
        (["+algo=grpo", "sync.stale=drop"], "sync.stale=drop: is of sync.mode=async; leave it out"),
        (["+algo=grpo", "sync.in_flight=abort"], "sync.in_flight=abort: is of sync.mode=async"),
        (["+algo=grpo", "data.experience_share=0.5"], "data.experience_share=0.5: nothing is recorded; set data.experience"),
        (
            ["+algo=grpo", "data.experience=x", "data.experience_share=0.01"],
            "data.experience_share=0.01: rounds to 0 groups of data",
        ),
        (
            ["+algo=grpo", "data.experience=x", "sync.max_lag=50"],
            "sync.max_lag=50: recorded groups are never sampled anew: their lag",
        ),
        (
            ["+algo=grpo", "data.experience=x", "rollout.engines=2"],
            "rollout.engines=2: means nothing to data.experience=x alone",
        ),
        (["+algo=grpo", "data.experience=x", "replay.capacity=9"], "replay.capacity=9: nothing new is sampled; leave it out"),
        (
            ["+algo=grpo", "replay.capacity=99", "replay.share=0.7"],
            "replay.share=0.7: groups learned from replay.reuse=3 times",
        ),
        (["+algo=grpo", "replay.capacity=5"], "replay.capacity=5: a step draws 8 groups; raise it to that at least"),
        (["+algo=dpo", "data.experience=x"], "data.experience=x: means nothing to +algo=dpo, it has no samplers; drop it"),
        (["+algo=dpo", "run.record=true"], "run.record=True: means nothing to +algo=dpo"),
        (["+algo=grpo", "learner.zero_stage=4"], "learner.zero_stage=4: input should be 0, 1, 2 or 3"),
        (["+algo=red_weight", "algo.clip_low=0.1"], "algo.clip_low: the chosen algorithm has no such key"),
        (["+algo=red_weight", "+algo.clip_low=0.1"], "algo.clip_low=0.1: no such key"),
        (["+algo=grpo", "algo.std=biased"], "algo.std=biased: input should be 'population' or 'sample'"),
        (["+algo=grpo", "algo.kl.every=-1"], "algo.kl.every=-1: must be 0 (off) or more"),
        (["+algo=grpo", "algo.kl.every=0", "algo.kl.coef=0.1"], "algo.kl.every=0: algo.kl.coef=0.1 needs KL at every step"),
        (["+algo=grpo", "algo.dual_clip=1.0"], "algo.dual_clip=1.0: must be above 1; null turns it off"),
        (
            ["+algo=grpo", "algo.correction.weight=token"],
            "algo.old_logprobs=behavior: algo.correction weighs",
        ),
        (
            ["+algo=m2po", "algo.old_logprobs=behavior"],
            "algo.old_logprobs=behavior: algo.objective=rlopt.objectives.m2po:M2PO needs",
        ),
        (
            ["+algo=m2po", "algo.correction.weight=token"],
            "algo.correction.weight=token: algo.objective=rlopt.objectives.m2po",
        ),
        (
            ["+algo=bapo", "algo.minibatches=2"],
            "algo.minibatches=2: algo.objective=rlopt.objectives.bapo:BAPO clips",
        ),
        (["+algo=m2po", "algo.advantages=user_rewards:score"], "algo.advantages=user_rewards:score: algo.objective="),
        (
            ["+algo=reinforce", "algo.old_logprobs=proximal"],
            "algo.old_logprobs=proximal: algo.objective=rlopt.objectives.reinforce",
        ),
        (["+algo=grpo", "algo.average=pair_mean"], "algo.average=pair_mean: pair_mean is for objectives that learn from pairs"),
        (["+algo=grpo", "algo.average=tokenmean"], "algo.average=tokenmean: input should be"),
        (["+algo=grpo", "run.dir="], "run.dir=: is empty; give it a value, or leave it out"),
        (["+algo=grpo", "run.name="], "run.name=: is empty; give it a value, or leave it out"),
        (["+algo=grpo", "data.train="], "data.train=: is empty; give it a value, or leave it out"),
        (["+algo=grpo", "data.eval="], "data.eval=: is empty; give it a value, or leave it out"),
        (["+algo=grpo", "data.eval=5"], "data.eval=5: input should be a valid string"),
        (["+algo=dpo", "data.answer_format=hash"], "data.answer_format=hash: means nothing to +algo=dpo"),
        (["+algo=grpo", "trainer.eval_every=5"], "trainer.eval_every=5: means nothing to +algo=grpo"),
        (["+algo=grpo", "algo.kl.place=somewhere"], "algo.kl.place=somewhere: input should be 'loss' or 'reward'"),
        (["+algo=grpo", "algo.minibatches=17"], "algo.minibatches=17: a step has data.prompts_per_step=16 groups"),
        (["+algo=grpo", "algo.overlong.buffer=2.0"], "algo.overlong.buffer=2.0: is a share of rollout.max_new_tokens"),
        (["+algo=grpo", "algo.advantages=nowhere:f"], "algo.advantages=nowhere:f: cannot be imported"),
        (["+algo=grpo", "algo.objective=user_objectives:NoLoss"], "algo.objective=user_objectives:NoLoss: lacks loss;"),
        (["+algo=grpo", "algo.objective=user_objectives:Plain"], "algo.objective=user_objectives:Plain: is not a dataclass"),
        (
            ["+algo=grpo", "trainer.eval_every=5"],
            "trainer.eval_every=5: means nothing to +algo=grpo without data.eval",
        ),
        (["+algo=dpo", "rollout.top_p=0.9"], "rollout.top_p=0.9: means nothing to +algo=dpo, it has no samplers; drop it"),
        (["+algo=dpo", "+algo.group_size=8"], "algo.minibatches: missing"),
        (
            [
                "+algo=sft",
                "algo.objective=rlopt.objectives.grpo:GRPO",
                "+algo.clip_low=0.2",
                "+algo.clip_high=0.2",
                "+algo.std=sample",
                "+algo.average=token_mean",
            ],
            "algo.objective=rlopt.objectives.grpo:GRPO: learns from groups, and +algo=sft samples nothing",
        ),
        (["+algo=grpo", "+data=nope"], "data=nope: no such data set; one of gsm8k, math"),
        (["+algo=grpo", "+experiment=nope"], "experiment=nope: no such recipe; one of calculator, gsm8k_qwen2.5_1.5b, "),
        (["+algo=dpo", "data.eval=[a,b]"], "data.eval=['a', 'b']: recorded rows are held out in one file; give one"),
        (["+algo=grpo", "algo.objective=nowhere:X"], "algo.objective=nowhere:X: cannot be imported"),
        (["+algo=grpo", "run.seed=4294967296"], "run.seed=4294967296: must be 0 to 4294967295"),
        (["+algo=grpo", "learner.betas=[0.9,1.0]"], "learner.betas=[0.9, 1.0]: AdamW has two, at least 0 and below 1"),
        (["+algo=grpo", "learner.weight_decay=-0.1"], "learner.weight_decay=-0.1: must be 0 (off) or above"),
        (["+algo=grpo", "learner.lr=inf"], "learner.lr=inf: must be above 0"),
        (["+algo=grpo", "algo.entropy_coef=nan"], "algo.entropy_coef=nan: must be a finite number"),
        (["+algo=grpo", "rollout.kv_cache_gib=0.0"], "rollout.kv_cache_gib=0.0: must be above 0 GiB"),
        (["+algo=grpo", "rollout.gpu_memory_share=85"], "rollout.gpu_memory_share=85: is a share of the card"),
        (["+algo=grpo", "cluster.cpu_threads=0"], "cluster.cpu_threads=0: must be auto or at least 1"),
        (["+algo=grpo", "cluster.cpu_threads=some"], "cluster.cpu_threads=some: must be auto or at least 1"),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=1.5"],
            "cluster.gpus_per_engine=1.5: must be 0, a share of one GPU, or a whole",
        ),
        (["+algo=grpo", "cluster.step_deadline_s=0.0"], "cluster.step_deadline_s=0.0: must be above 0 seconds"),
        (
            ["+algo=grpo", "learner.zero_stage=0", "model.dtype=bfloat16"],
            "learner.zero_stage=0: adds bfloat16 gradients up in bfloat16, and its first update is too small; use 1",
        ),
        (
            ["+algo=grpo", "learner.zero_stage=0", "cluster.gpus_per_learner=1", "cluster.gpus_per_engine=1"],
            "learner.zero_stage=0: adds bfloat16 gradients up in bfloat16",
        ),
        (
            ["+algo=grpo", "learner.workers=3", "learner.sequence_parallel=2"],
            "learner.sequence_parallel=2: learner.workers=3 is no multiple of it",
        ),
        (
            ["+algo=grpo", "learner.workers=2", "learner.sequence_parallel=2", "learner.compile=true"],
            "learner.sequence_parallel=2: ranks exchange heads inside what is compiled; set learner.compile=false",
        ),
        (
            ["+algo=grpo", "learner.offload=[parameters]"],
            "learner.offload=parameters: DeepSpeed does that with learner.zero_stage=3",
        ),
        (
            ["+algo=grpo", "learner.offload=[reference]", "learner.lora.rank=8"],
            "learner.offload=reference: with learner.lora the policy without adapters is the reference; drop it",
        ),
        (
            ["+algo=grpo", "learner.offload=[everything]"],
            "learner.offload.0=everything: input should be 'optimizer', 'parameters' or 'reference'",
        ),
        (
            ["+algo=grpo", "learner.compile=true", "learner.zero_stage=3"],
            "learner.compile=True: learner.zero_stage=3 gathers weights layer by layer, around what is compiled; leave it out",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.zero_optimization=5"],
            "learner.deepspeed.zero_optimization=5: must be settings with their names, e.g. {overlap_comm: false}",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.zero_optimization.reduce_bucket_size=large"],
            "learner.deepspeed.zero_optimization.reduce_bucket_size=large: must be at least 1",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.zero_optimization.stage3_max_live_parameters=0"],
            "learner.deepspeed.zero_optimization.stage3_max_live_parameters=0: must be at least 1",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.zero_optimization.stage=2"],
            "learner.deepspeed.zero_optimization.stage=2: is set by learner.zero_stage; drop it here",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.optimizer.params.lr=2"],
            "learner.deepspeed.optimizer.params.lr=2: is set by learner.lr, learner.betas and learner.weight_decay; drop it",
        ),
        (
            ["+algo=grpo", "+learner.deepspeed.zero_optimisation.overlap_comm=false"],
            "learner.deepspeed.zero_optimisation.overlap_comm=False: DeepSpeed has no zero_optimisation, did you mean "
            "zero_optimization",
        ),
        (["+algo=grpo", "+rollout.vllm.max_num_seqs=8"], "rollout.vllm.max_num_seqs=8: is set by rollout.max_num_seqs; drop"),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=0.5", "cluster.gpus_per_learner=1"],
            "cluster.gpus_per_engine=0.5: shares a card with a learner rank, which has 1.0; make it 1 in all",
        ),
        (["+algo=grpo", "cluster.gpus_per_engine=0.5"], "cluster.gpus_per_engine=0.5: shares a card with a learner rank"),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=0.4", "cluster.gpus_per_learner=0.6", "rollout.engines=2"],
            "rollout.engines=2: share cards with learner ranks, of which there are 1; use at most that",
        ),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=0.4", "cluster.gpus_per_learner=0.6", "rollout.tensor_parallel=2"],
            "cluster.gpus_per_engine=0.4: each of the rollout.tensor_parallel=2 ranks of an engine needs one whole GPU",
        ),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=1", "cluster.gpus_per_learner=2"],
            "cluster.gpus_per_learner=2.0: a rank computes on one GPU; set it to 1, and have more ranks (learner.workers)",
        ),
        (["+algo=grpo", "algo.group_size=1"], "algo.group_size=1: advantages are relative to the group"),
        (["+algo=grpo", "sync.backend=nccl"], "sync.backend=nccl: needs engines on GPUs"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_with_key_value_and_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(RloptError) as refusal:
        make_everything(*overrides)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_auto_takes_shared_memory_without_gpus_ipc_on_a_shared_one_and_nccl_on_separate_ones() -> None:
    cards = ((0.0, 0.0), (0.9, 0.1), (1.0, 1.0))
    keys = [(f"cluster.gpus_per_engine={engine}", f"cluster.gpus_per_learner={rank}") for engine, rank in cards]
    backends = [compose("+algo=grpo", *each).sync_backend for each in keys]
    assert backends == ["shm", "ipc", "nccl"]


def refusal(*overrides: str) -> str:
    """What the command line is answered with."""
    with pytest.raises(RloptError) as refused:
        compose(*overrides)
    return str(refused.value)


@pytest.mark.parametrize("value", [
    "runs/lr=3e-4", "a,b", "{prompt} is", "f(x", "[a", "it's, so", 'say "no", twice', "a]b", "x={y}",
    "C:\\runs\\a=b", "50%, half", "naïve=1", "a=b,c=d", "$x=1",
])  # fmt: skip
def test_a_value_that_hydra_does_not_read_is_answered_with_quotes_that_it_does(value: str) -> None:
    said = refusal("+algo=grpo", f"run.dir={value}")
    assert said.startswith(f"run.dir={value}: is not read as one value; quote the value: ")
    (proposed,) = shlex.split(said.partition("quote the value: ")[2])
    assert compose("+algo=grpo", proposed).run.dir == value


def test_the_proposed_quotes_work_in_a_shell_too() -> None:
    assert refusal("run.dir=runs/lr=3e-4") == (
        "run.dir=runs/lr=3e-4: is not read as one value; quote the value: 'run.dir=\"runs/lr=3e-4\"'"
    )
    assert refusal("steps") == "steps: is not a setting; want key=value"


@pytest.mark.parametrize(("override", "key"), [
    ("learning_rate=1e-6", "learner.lr"),
    ("+learning_rate=1e-6", "learner.lr"),
    ("lr=1e-6", "learner.lr"),
    ("learner.learning_rate=1e-6", "learner.lr"),
    ("trainer.lr=1e-6", "learner.lr"),
    ("per_device_train_batch_size=8", "learner.token_budget"),
    ("num_generations=8", "algo.group_size"),
    ("actor_rollout_ref.rollout.n=8", "algo.group_size"),
    ("max_completion_length=256", "rollout.max_new_tokens"),
    ("model_name_or_path=x", "model.path"),
    ("output_dir=x", "run.dir"),
    ("trainer.total_epochs=3", "trainer.total_steps"),
    ("beta=0.1", "algo.kl.coef"),
    ("algo.beta=0.1", "algo.kl.coef"),
    ("algo.clip_ratio=0.2", "algo.clip_low"),
    ("group_size=4", "algo.group_size"),
    ("learner.lrr=1", "learner.lr"),
])  # fmt: skip
def test_a_key_of_another_framework_or_section_is_answered_with_the_one_that_is_meant(override: str, key: str) -> None:
    assert f"did you mean {key}" in refusal("+algo=grpo", override)


def test_every_key_that_is_suggested_is_there() -> None:
    known = composed("config", "+algo=grpo")
    for key in MEANINGS:
        assert OmegaConf.select(known, key, throw_on_missing=False, default="none") != "none", key
    others = [name for names in MEANINGS.values() for name in names]
    assert len(others) == len(set(others))


def test_the_users_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    paths = {
        "run.dir": "~/runs/a", "run.resume": "~/runs/a/checkpoints/step_1", "model.path": "~/m", "data.train": "~/t.jsonl",
        "data.eval": "[~/a.jsonl,'~/b.jsonl']", "reward.fn": "[~/r.py:f,rlopt.rewards:exact]",
    }  # fmt: skip
    found = compose("+algo=reinforce", *(arguments_at_home(f"{key}={value}") for key, value in paths.items()))
    assert (found.run.dir, found.model.path, found.data.train) == ("/home/ada/runs/a", "/home/ada/m", "/home/ada/t.jsonl")
    assert found.data.eval == ["/home/ada/a.jsonl", "/home/ada/b.jsonl"]
    assert found.run.resume == "/home/ada/runs/a/checkpoints/step_1"
    assert compose("+algo=reinforce", "data.experience='~/e.jsonl'").data.experience == "/home/ada/e.jsonl"
    assert found.reward.fn == ["/home/ada/r.py:f", "rlopt.rewards:exact"]
    assert at_home("~/x") == Path("/home/ada/x")


def test_an_argument_that_vllm_does_not_have_is_refused_with_the_nearest() -> None:
    known = {"max_num_batched_tokens", "kv_cache_dtype"}
    refuse_unknown({"kv_cache_dtype": "fp8"}, known)
    why = "rollout.vllm.max_num_batched_token=9: vLLM has no such argument, did you mean max_num_batched_tokens"
    with pytest.raises(RloptError, match=why):
        refuse_unknown({"max_num_batched_token": 9}, known)
