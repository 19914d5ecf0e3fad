"""From the command line to the typed config, and every refusal in one line."""

from dataclasses import asdict

import hydra
import pytest
from builders import terms
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rlopt.config import Config
from rlopt.errors import RloptError
from rlopt.objectives.grpo import GRPO
from rlopt.prepare import make_objective, make_terms
from rlopt.settings import algorithms, conf_dir, translate, typed


def compose(*overrides: str) -> Config:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            return typed(hydra.compose("config", list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise translate(error) from error


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
            "rollout.sleep=True: needs engines that stand still between two synchronisations",
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
        (["+algo=grpo", "data.experience=x", "data.experience_share=0.01"], "data.experience_share=0.01: is no group of data"),
        (["+algo=grpo", "data.experience=x", "sync.max_lag=50"], "sync.max_lag=50: recorded groups stand still: their lag"),
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
        (["+algo=grpo", "algo.dual_clip=1.0"], "algo.dual_clip=1.0: must be above 1; null turns it off"),
        (["+algo=grpo", "algo.correction.weight=token"], "algo.anchor=behavior: algo.correction weighs the anchor against"),
        (
            ["+algo=m2po", "algo.anchor=behavior"],
            "algo.anchor=behavior: algo.objective=rlopt.objectives.m2po:M2PO needs",
        ),
        (
            ["+algo=m2po", "algo.correction.weight=token"],
            "algo.correction.weight=token: algo.objective=rlopt.objectives.m2po",
        ),
        (
            ["+algo=bapo", "algo.minibatches=2"],
            "algo.minibatches=2: algo.objective=rlopt.objectives.bapo:BAPO clips",
        ),
        (["+algo=m2po", "algo.credit=user_rewards:score"], "algo.credit=user_rewards:score: algo.objective="),
        (
            ["+algo=reinforce", "algo.anchor=proximal"],
            "algo.anchor=proximal: algo.objective=rlopt.objectives.reinforce",
        ),
        (["+algo=grpo", "algo.average=pair_mean"], "algo.average=pair_mean: pair_mean is for objectives that learn from pairs"),
        (["+algo=grpo", "algo.average=tokenmean"], "algo.average=tokenmean: input should be"),
        (["+algo=dpo", "data.prompt_key=question"], "data.prompt_key=question: means nothing to +algo=dpo"),
        (["+algo=grpo", "trainer.eval_every=5"], "trainer.eval_every=5: means nothing to +algo=grpo"),
        (
            ["+algo=grpo", "algo.minibatches=4", "data.prompts_per_step=4", "algo.group_size=2", "learner.workers=4"],
            "learner.workers=4: an update's 2 samples (data.prompts_per_step=4 x 2 / algo.minibatches=4) cannot be split",
        ),
        (["+algo=grpo", "algo.kl.place=somewhere"], "algo.kl.place=somewhere: input should be 'loss' or 'reward'"),
        (["+algo=grpo", "algo.minibatches=17"], "algo.minibatches=17: a step has data.prompts_per_step=16 groups"),
        (["+algo=grpo", "algo.overlong.buffer=2.0"], "algo.overlong.buffer=2.0: is a share of rollout.max_new_tokens"),
        (["+algo=grpo", "algo.credit=nowhere:f"], "algo.credit=nowhere:f: cannot be imported"),
        (["+algo=grpo", "algo.objective=user_objectives:NoLoss"], "algo.objective=user_objectives:NoLoss: lacks loss;"),
        (["+algo=grpo", "algo.objective=user_objectives:Plain"], "algo.objective=user_objectives:Plain: is no dataclass"),
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
        (["+algo=grpo", "+experiment=nope"], "experiment=nope: no such recipe; one of gsm8k_qwen2.5_1.5b, "),
        (["+algo=dpo", "data.eval=[a,b]"], "data.eval=['a', 'b']: recorded rows are held out in one file; give one"),
        (["+algo=grpo", "algo.objective=nowhere:X"], "algo.objective=nowhere:X: cannot be imported"),
        (["+algo=grpo", "run.seed=4294967296"], "run.seed=4294967296: must be 0 to 4294967295"),
        (["+algo=grpo", "learner.betas=[0.9,1.0]"], "learner.betas=[0.9, 1.0]: AdamW has two, at least 0 and below 1"),
        (["+algo=grpo", "learner.weight_decay=-0.1"], "learner.weight_decay=-0.1: must be 0 (off) or above"),
        (["+algo=grpo", "learner.lr=inf"], "learner.lr=inf: must be above 0"),
        (["+algo=grpo", "algo.entropy_coef=nan"], "algo.entropy_coef=nan: must be a finite number"),
        (["+algo=grpo", "rollout.kv_cache_gib=0.0"], "rollout.kv_cache_gib=0.0: must be above 0 GiB"),
        (["+algo=grpo", "rollout.gpu_memory_share=85"], "rollout.gpu_memory_share=85.0: is a share of the card"),
        (["+algo=grpo", "cluster.cpu_threads=0"], "cluster.cpu_threads=0: must be at least 1"),
        (
            ["+algo=grpo", "cluster.gpus_per_engine=1.5"],
            "cluster.gpus_per_engine=1.5: must be 0, a share of one GPU, or a whole",
        ),
        (["+algo=grpo", "cluster.step_deadline_s=0.0"], "cluster.step_deadline_s=0.0: must be above 0 seconds"),
        (
            ["+algo=grpo", "learner.workers=16", "replay.capacity=64", "algo.minibatches=8"],
            "learner.workers=16: an update's 8 samples (data.prompts_per_step=16 x 8 / algo.minibatches=8, at first ",
        ),
        (["+algo=grpo", "algo.group_size=1"], "algo.group_size=1: credit is relative to siblings"),
        (["+algo=grpo", "sync.backend=nccl"], "sync.backend=nccl: needs engines on GPUs"),
        (
            ["+algo=grpo", "data.prompts_per_step=1", "learner.workers=9"],
            "learner.workers=9: an update's 8 samples (data.prompts_per_step=1 x 8) cannot be split",
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_with_key_value_and_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(RloptError) as refusal:
        make_everything(*overrides)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_auto_takes_shared_memory_without_gpus_ipc_on_a_shared_one_and_nccl_on_separate_ones() -> None:
    backends = [compose("+algo=grpo", f"cluster.gpus_per_engine={gpus}").sync_backend for gpus in (0.0, 0.5, 1.0)]
    assert backends == ["shm", "ipc", "nccl"]
