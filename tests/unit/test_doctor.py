"""The doctor's verdicts on gaps made by hand, each with one cause."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import group

from rlopt.diagnosis import Finding, diagnose
from rlopt.doctor import verdict
from rlopt.evidence import Evidence, Tokens, bins, read
from rlopt.record import Recorder, header

STEPS = 60


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
        (lambda position, **_: np.where(position == 0, -3.0, -0.01 * np.exp(-position)), "tokenised again"),
        (lambda lag, chance, **_: np.where(chance.uniform(size=len(lag)) < 0.01, -9.0, 0.01), "tokenised again"),
    ],
)
def test_a_gap_at_lag_0_is_told_by_what_it_goes_with(gap: Any, words: str) -> None:
    finding = found("engine and learner", Evidence(rows(), tokens(gap)))
    assert finding.level == "fault"
    assert words in finding.verdict


def test_bfloat16_is_no_fault() -> None:
    rounding = tokens(lambda chance, lag, **_: chance.normal(0, 0.01, len(lag)))
    assert found("engine and learner", Evidence(rows(), rounding)).level == "fine"


def test_a_gap_that_is_the_distance_from_the_initial_model_is_a_sync_that_delivers_nothing() -> None:
    stuck = Evidence(rows(offpolicy__behavior_kl=lambda s: -2e-3 * s, offpolicy__ess=0.9), None)
    finding = found("synchronisation", stuck)
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
    ],
)
def test_metrics_alone_tell_the_rest(name: str, level: str, changed: dict[str, Any]) -> None:
    finding = found(name, Evidence(rows(**changed), None))
    assert finding.level == level
    assert finding.remedy


def test_a_step_of_several_updates_is_no_batch_of_lag_0() -> None:
    moved = Evidence(rows(actor__updates=4, offpolicy__behavior_kl=0.05), None)
    assert found("engine and learner", moved).level == "unknown"


def test_bins_have_the_mean_gap_and_the_mean_of_its_size() -> None:
    made = tokens(lambda lag, **_: np.where(lag % 2, 0.1, -0.1) * lag, count=4000)
    assert bins(made, "lag", count=2) == [
        ("0 to 9", 2000, pytest.approx(0.05), pytest.approx(0.45)),
        ("10 to 19", 2000, pytest.approx(0.05), pytest.approx(1.45)),
    ]


def test_a_record_is_read_up_to_its_damage_and_turns_are_counted_from_their_first_token(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, header("0", "m", 1.0, 1.0), known=True)
    one = group("a", (1.0,), version=1)
    long = one.samples[0]
    object.__setattr__(long, "spoken", np.array([False, True]))
    recorder.step(4, [one], torch.full((1, 5), -0.7))
    recorder.step(5, [group("b", (1.0,), version=1)], torch.full((1, 5), -0.5))
    recorder.close()
    path = tmp_path / "experience.jsonl.gz"
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "version": 1}\n')
    whole = read(tmp_path).tokens
    assert whole is not None
    assert (whole.step.tolist(), whole.lag.tolist()) == ([4, 5, 5], [2, 3, 3])
    assert (whole.position.tolist(), whole.since.tolist()) == ([1, 0, 1], [0, 0, 1])
    assert whole.gap.tolist() == pytest.approx([-0.2, 0, 0])
    path.write_bytes(path.read_bytes()[:-5])
    cut = read(tmp_path).tokens
    assert cut is not None
    assert cut.step.tolist() == [4]


def test_groups_that_another_run_recorded_are_no_samples_of_lag_0_at_step_1(tmp_path: Path) -> None:
    """They count as version 0 there, whatever policy spoke them; later ones of lag 0 were sampled here."""
    other = rows(offpolicy__behavior_kl=lambda s: 0.5 if s == 1 else 0.0, offpolicy__lag_max=lambda s: 0 if s in (1, 41) else s)
    assert found("engine and learner", Evidence(other, None)).level == "fault"
    assert found("engine and learner", Evidence(other, None, recorded=True)).level == "fine"
    gap = tokens(lambda lag, chance, **_: np.where(lag == 0, chance.normal(0, 0.5, len(lag)), 0.0))
    assert found("engine and learner", Evidence(other, gap)).level == "fault"
    assert found("engine and learner", Evidence(other, gap, recorded=True)).level == "fine"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for experience, recorded in (("null", False), ("other/experience.jsonl.gz", True)):
        (tmp_path / "config.yaml").write_text(f"data:\n  experience: {experience}\n")
        assert read(tmp_path).recorded is recorded
