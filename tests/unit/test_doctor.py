"""The doctor's verdicts on gaps made by hand, each with one cause."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import group

import rlopt.diagnosis.evidence
from rlopt.core.errors import RloptError
from rlopt.data.rollout_log import Recorder, blocks, header
from rlopt.diagnosis.checks import CHECKS, Finding, diagnose
from rlopt.diagnosis.evidence import Evidence, Kind, Tokens, bins, read, read_tokens
from rlopt.doctor import verdict

STEPS = 60


EPISODES = {"env__turns": 3.0, "env__tool_calls": 2.0, "env__tool_error_frac": 0.1, "env__turns_limit_frac": 0.0}
EPISODES |= {"env__timeout_frac": 0.0, "env__error_frac": 0.0}
"""Metrics of healthy episodes."""


def rows(**changed: Any) -> list[Mapping[str, float]]:
    """A healthy run with a sync every 20 steps; `changed` metrics are functions of the step, or values."""
    healthy: dict[str, Any] = {
        "version": lambda s: 20 * ((s - 1) // 20),
        "offpolicy/lag_max": lambda s: (s - 1) % 20,
        "offpolicy/behavior_kl": lambda s: 1e-3 * ((s - 1) % 20),
        "offpolicy/ratio_max": 1.5,
        "offpolicy/ess": lambda s: 1.0 if (s - 1) % 20 == 0 else 0.95,
        "actor/kl_k1": lambda s: 2e-3 * s,
        "actor/entropy": lambda s: 0.1 - 0.001 * s,
        "samples_seen": lambda s: 128 * s,
        "reward/mean": lambda s: 0.3 + 0.005 * s,
        "reward/std": 0.4,
        "reward/zero_std_frac": 0.2,
        "response_length/truncated_frac": 0.0,
        "response_length/mean": 40.0,
        "idle/learner_frac": 0.2,
    }
    every = {name.replace("__", "/"): value for name, value in changed.items()}
    return [
        {"step": s, **{name: v(s) if callable(v) else v for name, v in {**healthy, **every}.items()}}
        for s in range(1, STEPS + 1)
    ]


def tokens(gap: Any, count: int = 20000) -> Tokens:
    """Lag and position spread evenly, log-probabilities as a policy has them; `gap` is a function of the others."""
    chance = np.random.default_rng(0)
    lag, position = np.arange(count) % 20, np.arange(count) // 20 % 40
    behavior = np.log(chance.uniform(0.2, 1.0, count))
    made = gap(lag=lag, position=position, behavior=behavior, chance=chance)
    return Tokens(lag + 1, lag, np.ones(count, bool), position, position, behavior, made)


def found(name: str, evidence: Evidence) -> Finding:
    return next(finding for finding in diagnose(evidence) if finding.name == name)


def test_a_healthy_run_is_called_healthy() -> None:
    rounding = tokens(lambda chance, lag, **_: chance.normal(0, 1e-6, len(lag)) + chance.normal(0, 1e-3, len(lag)) * lag)
    for evidence in (Evidence(rows(), None), Evidence(rows(), rounding)):
        assert verdict(diagnose(evidence)) == "Healthy: nothing found."


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (lambda chance, lag, **_: chance.normal(0, 0.1, len(lag)), "compute different log-probabilities"),
        (lambda behavior, **_: 0.4 * behavior + 0.25, "another temperature"),
        (lambda behavior, **_: -0.4 * behavior - 0.1, "another temperature"),
        (lambda chance, lag, **_: -chance.uniform(0, 0.3, len(lag)), "another top-p"),
        (lambda position, **_: np.where(position == 0, -3.0, -0.01 * np.exp(-position)), "tokenized again"),
        (lambda lag, chance, **_: np.where(chance.uniform(size=len(lag)) < 0.01, -9.0, 0.01), "tokenized again"),
    ],
)
def test_the_cause_of_a_gap_at_lag_0_is_found_by_what_it_depends_on(gap: Any, words: str) -> None:
    finding = found("engine and learner", Evidence(rows(), tokens(gap)))
    assert finding.level == "fault"
    assert words in finding.verdict


def test_bfloat16_is_not_a_fault_and_float32_that_is_so_far_off_is() -> None:
    rounding = tokens(lambda chance, lag, **_: chance.normal(0, 0.01, len(lag)))
    assert found("engine and learner", Evidence(rows(), rounding, coarse=True)).level == "fine"
    assert found("engine and learner", Evidence(rows(), rounding)).level == "fault"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("noise", "count"), [(0.05, 20000), (0.05, 1000), (0.06, 1000), (0.1, 1000), (0.02, 400)])
def test_rounding_is_not_a_fault_where_most_tokens_are_certain_and_those_that_begin_a_turn_are_not(
    noise: float, count: int, seed: int
) -> None:
    """It moves a log-probability by noise * (1 - p): nine tokens of ten hardly, the first ones of turns by all of it."""
    chance = np.random.default_rng(seed)
    position, step = np.arange(count) % 40, np.arange(count) * 3 // count * 20 + 1
    p = np.where(position == 0, 0.5, np.where(chance.uniform(size=count) < 0.1, 0.6, 0.9995))
    gap = chance.normal(0, noise, count) * (1 - p)
    made = Tokens(step, np.zeros(count), np.ones(count, bool), position, position, np.log(p), gap)
    assert found("engine and learner", Evidence(rows(), made, coarse=True)).level == "fine"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("batches", [1, 2, 3, STEPS])
def test_small_batches_in_bfloat16_are_not_a_fault_and_a_shift_of_all_is(batches: int, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 6e-3, STEPS + 1)
    lags = {"offpolicy__lag_max": lambda s: 0.0 if s <= batches else 1.0, "offpolicy__ess": 0.99}
    for shift, level in ((0.0, "fine"), (0.06, "fault")):
        small = rows(offpolicy__behavior_kl=lambda s, by=shift: by + noise[s], **lags)
        assert found("engine and learner", Evidence(small, None, coarse=True)).level == level


NUCLEUS = [(0.9, 0.9, "warning"), (0.9, 0.5, "fault"), (0.99, 0.99, "warning"), (0.99, 0.8, "fault"), (0.95, 0.6, "fault")]
"""`rollout.top_p` as the config says and as the engine has it, and what that is."""


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("asked", "given", "level"), NUCLEUS)
def test_a_nucleus_that_the_config_asks_for_is_a_warning_with_its_key_and_another_is_a_fault(
    asked: float, given: float, level: str, coarse: bool
) -> None:
    noise = 0.02 if coarse else 1e-5
    within = tokens(lambda chance, lag, **_: np.log(chance.uniform(given, 1.0, len(lag))) + chance.normal(0, noise, len(lag)))
    said = found("engine and learner", Evidence(rows(), within, coarse=coarse, top_p=asked))
    assert (said.level, f"rollout.top_p=1.0 (here: {asked})" in said.remedy) == (level, level == "warning")


def test_metrics_allow_for_a_nucleus_no_more_than_it_leaves_out() -> None:
    for drift, level in ((0.05, "warning"), (0.2, "fault"), (-0.05, "fault")):
        fresh = Evidence(rows(offpolicy__behavior_kl=drift), None, top_p=0.9)
        assert found("engine and learner", fresh).level == level
        assert found("synchronization", fresh).level == "unknown"


@pytest.mark.parametrize(
    ("kind", "unknown"),
    [
        ("mixed", {"synchronization", "progress"}),
        ("offline", {"synchronization", "engine and learner", "progress", "idle time"}),
        ("rows", {row for row in CHECKS if row not in ("entropy", "episodes")}),
    ],
)
def test_a_run_on_recorded_data_is_asked_only_what_it_can_tell(kind: Kind, unknown: set[str]) -> None:
    worse = rows(reward__mean=lambda s: 0.7 - 0.01 * s, idle__learner_frac=0.95 if kind != "mixed" else 0.2)
    findings = diagnose(Evidence(worse, None, kind, coarse=False))
    assert {finding.name for finding in findings if finding.level == "unknown"} == unknown
    assert not [finding for finding in findings if finding.level in ("fault", "warning")]


def test_no_remedy_of_a_run_without_samplers_names_what_it_refuses() -> None:
    ill = {
        "offpolicy__ess": 0.1,
        "offpolicy__ratio_max": 1e6,
        "reward__zero_std_frac": 0.9,
        "actor__entropy": lambda s: 0.1 * 0.9**s,
    }
    ill |= {"response_length__truncated_frac": 0.8}
    for kind, refused in (("offline", ("sync.", "rollout.", "reward.")), ("rows", ("sync.", "rollout.", "reward.", "algo."))):
        findings = diagnose(Evidence(rows(**ill), None, kind))  # type: ignore[arg-type]
        assert len([finding for finding in findings if finding.level in ("fault", "warning")]) == (
            5 if kind == "offline" else 1
        )
        assert not [finding.remedy for finding in findings for key in refused if key in finding.remedy]


def test_a_gap_that_is_the_distance_from_the_initial_model_is_a_sync_that_delivers_nothing() -> None:
    stuck = Evidence(rows(offpolicy__behavior_kl=lambda s: -2e-3 * s, offpolicy__ess=0.9), None)
    finding = found("synchronization", stuck)
    assert (finding.level, "delivers nothing" in finding.verdict) == ("fault", True)
    assert "100% of 40 steps with version above 0" in finding.evidence
    assert verdict(diagnose(stuck)).startswith("Something is wrong: ")


@pytest.mark.parametrize(
    ("name", "level", "changed"),
    [
        ("staleness", "warning", {"offpolicy__ess": 0.4}),
        ("importance ratios", "fault", {"offpolicy__ratio_max": 1e6}),
        ("importance ratios", "fault", {"offpolicy__ess": 0.05}),
        ("reward", "fault", {"reward__std": 0.0, "reward__zero_std_frac": 1.0}),
        ("reward", "warning", {"reward__zero_std_frac": 0.9}),
        ("progress", "warning", {"reward__mean": lambda s: 0.7 - 0.01 * s}),
        ("length", "warning", {"response_length__truncated_frac": 0.3}),
        ("length", "fault", {"response_length__truncated_frac": 0.8}),
        ("entropy", "fault", {"actor__entropy": lambda s: 0.1 * 0.9**s}),
        ("idle time", "warning", {"idle__learner_frac": 0.95}),
        ("idle time", "warning", {"idle__rollout_frac": 0.9}),
        ("engine and learner", "fault", {"offpolicy__behavior_kl": 0.05}),
        ("episodes", "warning", {**EPISODES, "env__timeout_frac": 0.1}),
        ("episodes", "fault", {**EPISODES, "env__error_frac": 0.3}),
        ("episodes", "warning", {**EPISODES, "env__tool_error_frac": 0.7}),
        ("episodes", "warning", {**EPISODES, "env__turns_limit_frac": 0.6}),
    ],
)
def test_metrics_alone_tell_the_rest(name: str, level: str, changed: dict[str, Any]) -> None:
    finding = found(name, Evidence(rows(**changed), None))
    assert finding.level == level
    assert finding.remedy


def test_a_run_without_an_environment_is_not_asked_about_its_episodes() -> None:
    assert "episodes" not in [finding.name for finding in diagnose(Evidence(rows(), None))]
    fine = found("episodes", Evidence(rows(**EPISODES), None))
    assert (fine.level, fine.evidence) == (
        "fine",
        "last quarter: 3.0 turns, 2.0 calls of tools, 0.0% of episodes lost, 10.0% of calls wrong, 0.0% of episodes ended by "
        "env.max_turns",
    )


def test_a_step_of_several_updates_is_not_a_batch_of_lag_0() -> None:
    moved = Evidence(rows(actor__updates=4, offpolicy__behavior_kl=0.05), None)
    assert found("engine and learner", moved).level == "unknown"


def test_bins_have_the_mean_gap_and_the_mean_of_its_size() -> None:
    made = tokens(lambda lag, **_: np.where(lag % 2, 0.1, -0.1) * lag, count=4000)
    assert bins(made, "lag", count=2) == [
        ("0 to 9", 2000, pytest.approx(0.05), pytest.approx(0.45)),
        ("10 to 19", 2000, pytest.approx(0.05), pytest.approx(1.45)),
    ]


def test_a_record_is_read_up_to_its_damage_and_turns_are_counted_from_their_first_token(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, header("0", "m", 1.0, 1.0), logprobs_known=True)
    one = group("a", (1.0,), version=1)
    long = one.samples[0]
    object.__setattr__(long, "action_mask", np.array([False, True]))
    recorder.step(4, [one], torch.full((1, 5), -0.7))
    recorder.step(5, [group("b", (1.0,), version=1)], torch.full((1, 5), -0.5))
    path = tmp_path / "experience.jsonl.gz"
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "version": 1}\n')
    whole = read(tmp_path).tokens
    assert whole is not None
    assert (whole.step.tolist(), whole.lag.tolist()) == ([4, 5, 5], [2, 3, 3])
    assert (whole.position.tolist(), whole.since.tolist()) == ([1, 0, 1], [0, 0, 1])
    assert whole.gap.tolist() == pytest.approx([-0.2, 0, 0])
    begins = [block.start for block in blocks(path)][-1]
    path.write_bytes(path.read_bytes()[:-5])
    cut = read(tmp_path)
    assert cut.tokens is not None
    assert cut.tokens.step.tolist() == [4]
    assert f"experience.jsonl.gz is damaged from byte {begins} on (the file ends in the middle of a block)" in str(cut.record)


def test_a_record_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "rew')
    assert "no experience.jsonl.gz here" in str(read(tmp_path).record)
    assert len(read(tmp_path).rows) == 1
    plain = tmp_path / "experience.jsonl"
    plain.write_text(json.dumps({"rlopt": "experience"}) + "\n{")
    assert "experience.jsonl is damaged from byte 24 on" in str(read(tmp_path).record)
    plain.write_text(json.dumps({"rlopt": "experience"}) + "\n")
    assert "has no log-probabilities of the policy that sampled" in str(read(tmp_path).record)
    plain.write_text(json.dumps({"prompt": "ab", "samples": [{"text": "c", "reward": 1}]}) + "\n")
    with pytest.raises(RloptError, match=r"its experience.jsonl holds something else than groups \(.*\); remove it"):
        read(tmp_path)
    plain.unlink()
    for metrics in ("nothing\n", "[1]\n", "\n", ""):
        (tmp_path / "metrics.jsonl").write_text(metrics)
        with pytest.raises(RloptError, match=r"its metrics.jsonl .*; give the folder of"):
            read(tmp_path)


def test_a_long_record_is_thinned_out_within_its_steps_and_not_by_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every n-th step would meet one phase of the synchronization alone."""
    recorder = Recorder(tmp_path, 0, header("0", "m", 1.0, 1.0), logprobs_known=True)
    for step in range(1, 9):
        recorder.step(step, [group(str(n), (1.0,), version=step - 1) for n in range(60)], torch.zeros(60, 5))
    record = tmp_path / "experience.jsonl.gz"
    monkeypatch.setattr(rlopt.diagnosis.evidence, "MOST_TOKENS", record.stat().st_size // 16)
    made, why = read_tokens(record)
    assert made is not None
    assert (set(made.step.tolist()), why) == (set(range(1, 9)), None)
    assert 120 < len(made) < 360  # of 960


@pytest.mark.parametrize(
    ("config", "kind", "coarse", "top_p"),
    [
        (None, "sampled", True, 1.0),  # nothing is known
        ("data:\nmodel: {dtype: float32}\n", "sampled", False, 1.0),
        ("model: {dtype: bfloat16}\nrollout: {top_p: 0.9}\n", "sampled", True, 0.9),
        ("cluster: {gpus_per_learner: 1.0}\n", "sampled", True, 1.0),
        ("data: {experience: a.gz, experience_share: 1.0}\n", "offline", False, 1.0),
        ("data: {experience: a.gz, experience_share: 0.25}\nalgo: {group_relative: {}}\n", "mixed", False, 1.0),
        ("data: {experience: null}\nalgo: {name: dpo, group_relative: null}\n", "rows", False, 1.0),
    ],
)
def test_the_kind_of_run_is_read_from_its_config(
    tmp_path: Path, config: str | None, kind: Kind, coarse: bool, top_p: float
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    run = read(tmp_path)
    assert (run.kind, run.coarse, run.top_p) == (kind, coarse, top_p)


def test_a_config_that_is_not_yaml_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RloptError, match=r"its config.yaml cannot be read \(while parsing a flow node"):
        read(tmp_path)


def test_groups_that_another_run_recorded_are_not_samples_of_lag_0_at_step_1() -> None:
    """They count as version 0 there, whatever policy spoke them; later ones of lag 0 were sampled here."""
    other = rows(offpolicy__behavior_kl=lambda s: 0.5 if s == 1 else 0.0, offpolicy__lag_max=lambda s: 0 if s in (1, 41) else s)
    assert found("engine and learner", Evidence(other, None)).level == "fault"
    assert found("engine and learner", Evidence(other, None, kind="mixed")).level == "fine"
    gap = tokens(lambda lag, chance, **_: np.where(lag == 0, chance.normal(0, 0.5, len(lag)), 0.0))
    assert found("engine and learner", Evidence(other, gap)).level == "fault"
    assert found("engine and learner", Evidence(other, gap, kind="mixed")).level == "fine"
