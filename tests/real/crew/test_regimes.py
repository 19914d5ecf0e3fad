"""How stale the data is, on a real engine and learner: schedules, async, offline, mixed, replay; and the doctor on each."""

import os
import re
from pathlib import Path

import pytest
import ray
from conftest import rows
from crews import SMALL, prepared_for, train

from rlopt.core.errors import RloptError
from rlopt.data.offline_rollouts import Experience
from rlopt.diagnosis.checks import diagnose
from rlopt.diagnosis.evidence import read
from rlopt.doctor import verdict
from rlopt.orchestrator.schedule import Schedule
from rlopt.run import workers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

STEPS = 8
SEEDS = range(42, 42 + int(os.environ.get("RLOPT_SEEDS", "1")))
"""Of the healthy runs; `RLOPT_SEEDS=10` is how the doctor was tried for false alarms."""
BASE = (*SMALL, f"trainer.total_steps={STEPS}", "run.record=true")


@pytest.fixture(scope="module")
def recorded(home: Path, crew: workers.RunWorkers) -> Path:
    """A run of (4, 0) with its record."""
    folder = home / "recorded"
    train(crew, prepared_for(folder, "+algo=grpo", *BASE, "sync.interval=4"), home / "fresh")
    return folder


def healthy(folder: Path) -> bool:
    """What the doctor says, but for idle time, which depends on what else the machine does."""
    findings = [finding for finding in diagnose(read(folder)) if finding.name != "idle time"]
    assert verdict(findings) == "Healthy: nothing found.", [f for f in findings if f.level != "fine"]
    return True


def versions(folder: Path) -> list[set[int]]:
    """The versions of all tokens that every step learned from."""
    tokens = read(folder).tokens
    assert tokens is not None
    return [set((step - 1 - tokens.lag[tokens.step == step]).tolist()) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("interval", "offset"), [(1, 0), (8, 0), (1, 4), (4, 2), (300, 199)])
def test_every_token_is_sampled_by_the_version_of_the_schedule(
    crew: workers.RunWorkers, home: Path, tmp_path: Path, interval: int, offset: int, seed: int
) -> None:
    overrides = [f"sync.interval={interval}", f"sync.offset={offset}", f"run.seed={seed}"]
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, *overrides), home / "fresh")
    assert versions(tmp_path / "run") == [{Schedule(interval, offset).version(b)} for b in range(1, STEPS + 1)]
    assert healthy(tmp_path / "run")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("in_flight", ["keep", "abort", "wait"])
def test_samplers_that_never_stop_keep_to_the_bound_and_every_token_has_its_version(
    crew: workers.RunWorkers, home: Path, tmp_path: Path, in_flight: str, seed: int
) -> None:
    overrides = ["sync.mode=async", "sync.interval=1", "sync.max_lag=3", f"sync.in_flight={in_flight}", f"run.seed={seed}"]
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, *overrides), home / "fresh")
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert max(row["offpolicy/lag_max"] for row in metrics) in (1, 2, 3)
    assert all(row["offpolicy/dropped_groups"] == 0 and "response_length/finished_mean" in row for row in metrics)
    tokens = read(tmp_path / "run").tokens
    assert tokens is not None
    fresh = tokens.where((tokens.lag == 0) & tokens.pure)
    assert abs(fresh.gap).max() < 1e-4  # stamped with the weights that spoke it
    assert healthy(tmp_path / "run")


def test_engines_that_sleep_while_the_learner_learns_draw_the_same_samples(
    crew: workers.RunWorkers, home: Path, recorded: Path, tmp_path: Path
) -> None:
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, "sync.interval=4", "rollout.sleep=true"), home / "fresh")
    assert crew.engines
    assert ray.get([engine.napped.remote() for engine in crew.engines.handles.values()]) == [STEPS / 4] * 2
    awake, asleep = rows(recorded / "metrics.jsonl"), rows(tmp_path / "run" / "metrics.jsonl")
    same = ("version", "reward/mean", "response_length/mean", "actor/pg_loss", "actor/kl_k2", "offpolicy/ratio_max")
    for a, b in zip(awake, asleep, strict=True):
        assert [b[name] for name in same] == pytest.approx([a[name] for name in same], rel=1e-4, abs=1e-9)


def test_a_group_that_is_late_is_given_up_and_counted(crew: workers.RunWorkers, home: Path, tmp_path: Path) -> None:
    overrides = ["sync.mode=async", "sync.interval=1", "sync.max_lag=2", "sync.stale=drop"]
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, *overrides), home / "fresh", "some slow")
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["offpolicy/dropped_groups"] for row in metrics) > 0
    assert max(row["offpolicy/lag_max"] for row in metrics) <= 2
    assert all(row["samples_seen"] == 16 * row["step"] for row in metrics)


def test_a_run_can_be_learned_from_again_without_samplers_and_counts_its_own_updates_as_lag(
    crew: workers.RunWorkers, home: Path, recorded: Path, tmp_path: Path
) -> None:
    prepared = prepared_for(tmp_path / "run", "+algo=grpo", *BASE, f"data.experience={recorded}/experience.jsonl.gz")
    assert (prepared.data.prompts, prepared.config.samples) == ([], False)
    train(crew, prepared, home / "fresh")
    first, again = rows(recorded / "metrics.jsonl"), rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["reward/mean"] for row in again] == [row["reward/mean"] for row in first]
    assert [row["offpolicy/lag_max"] for row in again] == list(range(STEPS))
    same = ("actor/pg_loss", "actor/grad_norm", "actor/kl_k2", "offpolicy/ratio_max")
    for step in range(4):  # by the same weights, on the same groups, and with the same numbers
        assert [again[step][name] for name in same] == pytest.approx([first[step][name] for name in same], rel=1e-4, abs=1e-9)
    assert healthy(tmp_path / "run")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_share_of_every_batch_may_be_recorded_and_another_replayed(
    crew: workers.RunWorkers, home: Path, recorded: Path, tmp_path: Path, seed: int
) -> None:
    overrides = [f"data.experience={recorded}/experience.jsonl.gz", "data.experience_share=0.5", "sync.interval=1"]
    replay = ["replay.capacity=16", "replay.share=0.5", "replay.reuse=3", f"run.seed={seed}"]
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, *overrides, *replay), home / "fresh")
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["samples_seen"] for row in metrics[:3]] == [12, 28, 44]  # nothing to replay in the first step
    assert metrics[-1]["replay/samples_per_insert"] == pytest.approx((2 * STEPS - 1) / STEPS)  # none of the first
    assert metrics[-1]["offpolicy/lag_max"] == STEPS - 1
    assert healthy(tmp_path / "run")


def test_a_record_that_does_not_fit_is_refused_by_name(recorded: Path, tmp_path: Path) -> None:
    whole = (recorded / "experience.jsonl.gz").read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    prepared = prepared_for(tmp_path / "cut", "+algo=grpo", *BASE, f"data.experience={cut}")
    assert isinstance(prepared.data.experience, Experience)
    assert re.match(
        r"damaged from byte \d+ of \d+ on: the file ends in the middle of a block", str(prepared.data.experience.damage)
    )
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "1+1=", "samples": [{"text": "Answer: 2", "reward": 1}, {"text": "Answer: 3", "reward": 0}]}\n')
    with pytest.raises(RloptError, match="groups without behavior log-probabilities, and algo.objective=.*GRPO takes ratios"):
        prepared_for(tmp_path / "own", "+algo=grpo", *BASE, f"data.experience={own}")
    prepared_for(tmp_path / "own", "+algo=red_weight", *BASE, f"data.experience={own}")
    with pytest.raises(RloptError, match="was sampled at temperature 1.0"):
        prepared_for(
            tmp_path / "hot", "+algo=grpo", *BASE, f"data.experience={recorded}/experience.jsonl.gz", "rollout.temperature=0.9"
        )


WRONG = {
    "noise": "compute different log-probabilities",
    "temperature": "another temperature",
    "top-p": "another top-p",
    "retokenized": "tokenized again",
    "nothing delivered": "synchronization delivers nothing",
    "one reward": "the reward never varies",
    "no signal": "most groups have no signal",
    "truncation": "many samples end at the limit",
    "slow sampler": "the learner mostly waits",
    "slow learner": "the samplers mostly wait",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_doctor_names_what_is_wrong(crew: workers.RunWorkers, home: Path, tmp_path: Path, wrong: str) -> None:
    overrides = ["sync.verify=false", "sync.interval=4"]
    if wrong.startswith("slow"):
        overrides += ["trainer.total_steps=4", "sync.interval=1"]
    train(crew, prepared_for(tmp_path / "run", "+algo=grpo", *BASE, *overrides), home / "fresh", wrong, lr=1e-3)
    said = verdict(diagnose(read(tmp_path / "run")))
    assert WRONG[wrong] in said
    others = {other for other, words in WRONG.items() if other != wrong and words in said}
    # Where all rewards are one, no group has any signal either. Who waits for whom is the machine's as well.
    assert others <= {"no signal", "slow sampler", "slow learner"}, said


def test_the_doctor_sees_entropy_collapse_staleness_and_exploding_ratios(
    crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    row = tmp_path / "row.jsonl"
    row.write_text('{"prompt": "12+7*3=", "completion": "pSn+=:73\\nrwA*tes 1"}\n')  # the model knows the right answer already
    narrow = ["+algo=sft", f"data.train={row}", "data.prompts_per_step=1", "trainer.total_steps=60"]
    train(crew, prepared_for(tmp_path / "narrow", *narrow), home / "fresh", lr=2e-3)
    assert "entropy has collapsed" in verdict(diagnose(read(tmp_path / "narrow")))
    long = ("+algo=reinforce", *SMALL, "run.record=true", "trainer.total_steps=24", "sync.interval=24")
    stale = prepared_for(tmp_path / "stale", *long)
    train(crew, stale, home / "fresh", lr=3e-3)
    findings = {finding.name: finding.level for finding in diagnose(read(tmp_path / "stale"))}
    assert (findings["staleness"], findings["engine and learner"], findings["importance ratios"]) == ("warning", "fine", "fine")
    wild = prepared_for(tmp_path / "wild", *long)
    train(crew, wild, home / "fresh", lr=2e-2)
    assert "ratios explode" in verdict(diagnose(read(tmp_path / "wild")))
