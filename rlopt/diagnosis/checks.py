"""What is wrong with a run, from its metrics and its record: each check a pure function, with the numbers behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rlopt.diagnosis.agreement import sampler_agrees, sync_delivers
from rlopt.diagnosis.evidence import Evidence, Kind
from rlopt.diagnosis.results import BOUND, CheckResult, Level, percent


@dataclass(frozen=True)
class Finding:
    """The result of a check, with its name."""

    name: str
    level: Level
    verdict: str
    evidence: str
    remedy: str


def diagnose(evidence: Evidence) -> list[Finding]:
    """All findings, the gravest first."""
    findings = []
    for name, (check, kinds) in CHECKS.items():
        one = check(evidence) if evidence.kind in kinds else CheckResult("unknown", "this run samples nothing")
        if one is None:
            continue
        findings.append(Finding(name, one.level, one.verdict, one.evidence, one.remedy))
    order: list[Level] = ["fault", "warning", "unknown", "fine"]
    return sorted(findings, key=lambda finding: order.index(finding.level))


def staleness(evidence: Evidence) -> CheckResult:
    ess, lag = evidence.column("offpolicy/ess"), evidence.column("offpolicy/lag_max")
    if not len(ess):
        return CheckResult("unknown", "nothing is known of the policy that sampled")
    numbers = f"largest lag {lag.max():.0f}; effective sample size {np.median(ess):.0%} (median), {ess.min():.0%} (least)"
    if evidence.tokens is not None and evidence.tokens.lag.min() < evidence.tokens.lag.max():
        slope, intercept = np.polyfit(evidence.tokens.lag, np.abs(evidence.tokens.gap), 1)
        numbers += f"; |gap| {intercept:.1e} + {slope:.1e} nats per step of lag"
    if np.median(ess) < 0.6:
        fresher = "fewer trainer.total_steps" if evidence.kind == "offline" else "a lower sync.interval or sync.max_lag"
        return CheckResult(
            "warning", "samples are so stale that little more than half of them count", numbers,
            f"{fresher}, a lower learner.lr, or {BOUND}",
        )  # fmt: skip
    return CheckResult("fine", "samples are close enough to the policy that learns from them", numbers)


def ratios(evidence: Evidence) -> CheckResult:
    largest, ess = evidence.column("offpolicy/ratio_max", 0.5), evidence.column("offpolicy/ess", 0.5)
    if not len(largest):
        return CheckResult("unknown", "nothing is known of the policy that sampled")
    numbers = (
        f"second half: largest ratio {largest.max():.3g} (median over steps {np.median(largest):.3g}), ESS from {ess.min():.0%}"
    )
    if np.median(ess) < 0.3 or np.median(largest) > 1e4:
        return CheckResult(
            "fault", "ratios explode: a few tokens outweigh all others", numbers,
            f"{BOUND}; or a lower learner.lr",
        )  # fmt: skip
    return CheckResult("fine", "ratios are bounded", numbers)


def reward_varies(evidence: Evidence) -> CheckResult:
    spread, flat = evidence.column("reward/std"), evidence.column("reward/zero_std_frac", 0.5)
    if not len(spread):
        return CheckResult("unknown", "the run has no rewards")
    numbers = (
        f"standard deviation {spread.min():.3g} to {spread.max():.3g}; {flat.mean():.0%} of groups all alike (second half)"
    )
    if spread.max() == 0:
        return CheckResult(
            "fault", "the reward never varies: there is nothing to learn", numbers,
            "look at the rewards in data.experience" if evidence.kind == "offline"
            else "try reward.fn on a few completions of samples.jsonl by hand",
        )  # fmt: skip
    if flat.mean() > 0.85:
        return CheckResult(
            "warning", "most groups have no signal: all their samples earn the same", numbers,
            "a record of other problems" if evidence.kind == "offline"
            else "algo.refills, a larger algo.group_size, or problems of another difficulty",
        )  # fmt: skip
    return CheckResult("fine", "the reward distinguishes samples", numbers)


def progress(evidence: Evidence) -> CheckResult:
    if evidence.kind in ("mixed", "offline"):
        return CheckResult(
            "unknown", "rewards of recorded groups are not the policy's", "", "rlopt.evaluate run=... asks the policy"
        )
    reward, spread = evidence.column("reward/mean"), evidence.column("reward/std")
    span = len(reward) // 8
    if span < 5:
        return CheckResult("unknown", "too few steps to tell", f"{len(reward)} steps")
    parts = np.array([part.mean() for part in np.array_split(reward, 8)])
    ends = [evidence.rows[place].get("samples_seen", 0.0) for place in (0, -1)]  # a fork begins with those of another run
    samples = (ends[1] - ends[0]) / (len(reward) - 1) * span
    noise = spread.mean() / max(1.0, samples) ** 0.5 * 2  # siblings are alike, so a sample is worth less than one
    numbers = f"reward {parts[0]:.3f} at first, {parts.max():.3f} at best, {parts[-1]:.3f} at last (eighths of the run)"
    if parts[-1] < 0.75 * parts.max() and parts.max() - parts[-1] > 4 * noise:
        return CheckResult(
            "warning", "the policy had learned more than it has kept", numbers,
            f"a lower learner.lr or sync.interval, algo.kl.coef=0.01, or {BOUND}",
        )  # fmt: skip
    return CheckResult("fine", "what was learned was kept", numbers)


def truncation(evidence: Evidence) -> CheckResult:
    cut, length = evidence.column("response_length/truncated_frac", 0.25), evidence.column("response_length/mean", 0.25)
    if not len(cut):
        return CheckResult("unknown", "the run sampled nothing")
    numbers = f"last quarter: {cut.mean():.1%} of samples cut, mean length {length.mean():.1f} tokens"
    if cut.mean() > 0.25:
        longer = "a record of longer samples" if evidence.kind == "offline" else "a larger rollout.max_new_tokens"
        return CheckResult(
            "fault" if cut.mean() > 0.5 else "warning", "many samples end at the limit, not where they would", numbers,
            f"{longer}, or algo.overlong.buffer=0.2, which makes long ones pay",
        )  # fmt: skip
    return CheckResult("fine", "samples end by themselves", numbers)


def episodes(evidence: Evidence) -> CheckResult | None:
    """None for a run without an environment."""
    lost = [evidence.column(f"env/{kind}_frac", 0.25) for kind in ("timeout", "error")]
    if not len(lost[0]):
        return None
    turns, calls, wrong, limited = (
        evidence.column(f"env/{name}", 0.25) for name in ("turns", "tool_calls", "tool_error_frac", "turns_limit_frac")
    )
    gone = lost[0].mean() + lost[1].mean()
    numbers = f"last quarter: {turns.mean():.1f} turns, {calls.mean():.1f} calls of tools, {gone:.1%} of episodes lost"
    numbers += f", {wrong.mean():.1%} of calls wrong" if len(wrong) else ""
    numbers += f", {limited.mean():.1%} of episodes ended by env.max_turns"
    if gone > 0.05:
        return CheckResult(
            "fault" if gone > 0.25 else "warning", "environments fail, and their episodes are missing", numbers,
            "look at environment_fault in events.jsonl; a larger env.timeout_s if they are slow",
        )  # fmt: skip
    if len(wrong) and wrong.mean() > 0.5:
        return CheckResult(
            "warning", "most calls of tools are answered with an error", numbers,
            "look at samples.jsonl: env.parser, the tools' docstrings, or a prompt that shows a call",
        )  # fmt: skip
    if limited.mean() > 0.5:
        return CheckResult("warning", "most episodes end before they are over", numbers, "a larger env.max_turns")
    return CheckResult("fine", "episodes come to their end", numbers)


def entropy(evidence: Evidence) -> CheckResult:
    values = evidence.column("actor/entropy")
    if len(values) < 10:
        return CheckResult("unknown", "too few steps to tell", f"{len(values)} steps")
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth].mean(), values[-tenth:].mean()
    numbers = f"{first:.4f} nats per token at first, {last:.4f} at last"
    if last < 0.05 * first:
        return CheckResult(
            "fault", "entropy has collapsed: the policy says one thing only", numbers,
            "a lower learner.lr" if evidence.kind == "rows"
            else "algo.entropy_coef=0.001, algo.kl.coef=0.01, a wider upper clip, or a lower learner.lr",
        )  # fmt: skip
    return CheckResult("fine", "the policy still explores", numbers)


def idleness(evidence: Evidence) -> CheckResult:
    learner, samplers = evidence.column("idle/learner_frac", 0.8), evidence.column("idle/rollout_frac", 0.8)
    numbers = f"learner idle {percent(learner)}, samplers idle {percent(samplers)} of the time"
    if len(learner) and learner.mean() > 0.9:
        return CheckResult(
            "warning", "the learner mostly waits for samples", numbers,
            "more rollout.engines, a larger sync.interval or sync.offset, or sync.mode=async",
        )  # fmt: skip
    if len(samplers) and samplers.mean() > 0.8:
        return CheckResult(
            "warning", "the samplers mostly wait for the learner", numbers,
            "fewer rollout.engines, more learner.workers, or a larger learner.token_budget",
        )  # fmt: skip
    return CheckResult("fine", "both sides have work", numbers)


SAMPLING: tuple[Kind, ...] = ("sampled", "mixed")
GROUPS: tuple[Kind, ...] = (*SAMPLING, "offline")
CHECKS: Mapping[str, tuple[Callable[[Evidence], CheckResult | None], tuple[Kind, ...]]] = {
    "synchronization": (sync_delivers, SAMPLING),
    "engine and learner": (sampler_agrees, SAMPLING),
    "staleness": (staleness, GROUPS),
    "importance ratios": (ratios, GROUPS),
    "reward": (reward_varies, GROUPS),
    "progress": (progress, GROUPS),
    "length": (truncation, GROUPS),
    "episodes": (episodes, (*GROUPS, "rows")),
    "entropy": (entropy, (*GROUPS, "rows")),
    "idle time": (idleness, SAMPLING),
}
"""The checks by name, and the kinds of run that each applies to."""
