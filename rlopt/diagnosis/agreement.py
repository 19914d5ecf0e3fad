"""Whether engine and learner agree: where the gap between their log-probabilities comes from.

The gap of a token is its log-probability by the learner before the update, less that by the sampler:
policy - rollout, in nats. Its cause shows in what it depends on:

| cause | the gap |
|---|---|
| engine and learner compute differently | is there at lag 0, at version 0 already, and of either sign |
| samples are stale | is nothing at lag 0 and grows with lag |
| a sync that delivers nothing | is the distance from the initial model, whatever the lag; at version 0 there is none |
| text was tokenized again | at lag 0, jumps: where a turn begins, or at few tokens that the learner did not expect |
| another temperature | at lag 0, goes with how likely the token is, to both sides |
| another top-p | at lag 0, is never above 0 |
"""

import numpy as np

from rlopt.diagnosis.evidence import Evidence, Tokens
from rlopt.diagnosis.results import COARSE, NEAR, TOP_P, CheckResult


def sync_delivers(evidence: Evidence) -> CheckResult:
    if evidence.kind == "mixed":
        return CheckResult("unknown", "recorded groups count as version 0, so metrics cannot tell what the samplers have")
    if evidence.top_p < 1:
        return CheckResult("unknown", "within a nucleus (rollout.top_p) metrics cannot tell what the samplers have")
    needed = ("actor/kl_k1", "offpolicy/behavior_kl")
    rows = [r for r in evidence.rows if r.get("version", 0) > 0 and all(r.get(name) is not None for name in needed)]
    apart = np.array([row["actor/kl_k1"] for row in rows])
    gap = np.array([-row["offpolicy/behavior_kl"] for row in rows])
    if len(rows) < 3:
        return CheckResult("unknown", "too few steps after a synchronization to tell", f"{len(rows)} steps with KL")
    far = np.abs(apart) > 1e-4
    # With frozen samplers only rounding is left; where the policy has moved far, a share of the distance would allow for more.
    same = np.abs(gap - apart) <= np.minimum(0.02 * np.abs(apart), _rounding(evidence))
    share = float((same & far).sum() / max(1, far.sum()))
    numbers = f"the gap is the distance from the initial model at {share:.0%} of {int(far.sum())} steps with version above 0"
    if far.sum() >= 3 and share > 0.8:
        return CheckResult(
            "fault", "the samplers still have the initial model: synchronization delivers nothing", numbers,
            "sync.verify=true reports it at the first sync; look at sync_fault in events.jsonl",
        )  # fmt: skip
    return CheckResult("fine", "the samplers' weights follow the learner's", numbers)


def sampler_agrees(evidence: Evidence) -> CheckResult:
    tokens = evidence.tokens
    fresh = tokens.where((tokens.lag == 0) & tokens.pure & (tokens.step >= evidence.comparable_from)) if tokens else None
    if fresh is None or len(fresh) < 200:
        return _agreement_of_metrics(evidence)
    size = np.abs(fresh.gap)
    mean, numbers = float(size.mean()), f"{len(fresh)} tokens of lag 0: mean |gap| {size.mean():.1e}, largest {size.max():.1e}"
    if mean <= NEAR:
        return CheckResult("fine", "engine and learner give the same log-probabilities", numbers)
    first_model = size[fresh.step == 1]
    if len(first_model) >= 100 and first_model.mean() <= NEAR and mean > 5 * first_model.mean():
        numbers += f"; {first_model.mean():.1e} at version 0"
        return CheckResult(
            "fault", "synchronization delivers other weights than those of the version that engines claim", numbers,
            "sync.verify=true reports it at the first sync; look at sync_fault in events.jsonl",
        )  # fmt: skip
    if _nucleus_explains(evidence, fresh.gap):
        return _within_nucleus(evidence, numbers)
    moved = fresh.where(size > NEAR)
    below, together = float((moved.gap < 0).mean()), _goes_with_likelihood(moved)
    skew = float(((fresh.gap - fresh.gap.mean()) ** 3).mean() / fresh.gap.std() ** 3)
    first, later = _by_doubt(fresh.where(fresh.since == 0)), _by_doubt(fresh.where(fresh.since >= 8))
    jumps = first > 5 * later > 0
    numbers += (
        f"; {below:.0%} of those over {NEAR} below 0, correlation with the log-probability {together:+.2f}, skew {skew:+.1f}"
    )
    bounded = below > 0.97 and fresh.gap.min() > TOP_P
    if bounded or abs(together) > 0.35:
        what = "top-p" if bounded else "temperature"
        return CheckResult(
            "fault", f"engine and learner do not mean the same distribution: another {what}", numbers,
            "rollout.temperature and rollout.top_p must be those sampled with, log-probabilities those sampled from",
        )  # fmt: skip
    if jumps or (skew < -3 and fresh.gap.mean() < -0.3 * mean):
        if jumps:
            numbers += f"; the first token of a turn {first / later:.0f} times as far off as those from the ninth on"
        return CheckResult(
            "fault", "the learner reads other tokens than the engine did: text was tokenized again", numbers,
            "train on the token ids that the engine was given and returned, never on decoded text",
        )  # fmt: skip
    if evidence.coarse and mean <= COARSE and abs(fresh.gap.mean()) < 0.3 * mean:
        return CheckResult("fine", "engine and learner give the same log-probabilities, but for bfloat16's rounding", numbers)
    return CheckResult(
        "fault", "engine and learner compute different log-probabilities with the same weights", numbers,
        "model.dtype=float32 to see whether it is rounding; else compare versions and kernels of both",
    )  # fmt: skip


def _by_doubt(tokens: Tokens) -> float:
    """The size of gaps, relative to the sampler's uncertainty: rounding moves a log-probability in proportion to that.

    0 where there are too few to say.
    """
    doubt = float((1 - np.exp(tokens.behavior)).sum())
    return float(np.abs(tokens.gap).sum()) / doubt if len(tokens) > 20 and doubt > 0 else 0.0


def _agreement_of_metrics(evidence: Evidence) -> CheckResult:
    fresh = [row for row in evidence.rows if row.get("offpolicy/lag_max") == 0 and row.get("offpolicy/ess") is not None]
    fresh = [row for row in fresh if row.get("actor/updates", 1) == 1]  # later updates of a step start from other weights
    fresh = [row for row in fresh if row["step"] >= evidence.comparable_from]
    if not fresh:
        remedy = "run.record=true keeps what is needed" if evidence.tokens is None else ""
        return CheckResult("unknown", "no batch of lag 0 to compare on", "", remedy)
    gaps = np.array([row["offpolicy/behavior_kl"] for row in fresh])
    spread = np.array([1 - row["offpolicy/ess"] for row in fresh])
    drift, room = float(np.abs(gaps).max()), NEAR
    if evidence.coarse:  # the mean of a small batch is far from 0 by rounding alone
        several = len(gaps) >= 5
        drift, room = abs(float(gaps.mean())), NEAR + 3 * float(gaps.std(ddof=1)) / len(gaps) ** 0.5 if several else COARSE
    numbers = f"{len(fresh)} batches of lag 0: gap {drift:.1e} nats, 1 - ESS up to {spread.max():.1e}"
    if drift <= room and spread.max() <= COARSE:
        return CheckResult("fine", "engine and learner give the same log-probabilities", numbers)
    if _nucleus_explains(evidence, -gaps):
        return _within_nucleus(evidence, numbers)
    return CheckResult(
        "fault", "engine and learner differ on samples of lag 0", numbers,
        "run.record=true, and ask again: the record distinguishes temperature, top-p, tokens and rounding",
    )  # fmt: skip


def _nucleus_explains(evidence: Evidence, gaps: np.ndarray) -> bool:
    """Whether gaps are those of a sampler within `rollout.top_p`: between the logarithm of that and 0, and rounding."""
    if evidence.top_p >= 1:
        return False
    lowest, room = float(np.log(evidence.top_p)), _rounding(evidence)
    least, most = np.quantile(gaps, [0.001, 0.999])
    if evidence.coarse:  # rounding of single tokens reaches further than that of their mean
        least, most = least + 10 * room, most - 10 * room
    return bool(lowest - room <= min(least, gaps.mean()) and max(most, gaps.mean()) <= room)


def _rounding(evidence: Evidence) -> float:
    return COARSE if evidence.coarse else NEAR


def _within_nucleus(evidence: Evidence, numbers: str) -> CheckResult:
    return CheckResult(
        "warning", "samplers draw within a nucleus, the learner scores all tokens: every ratio is smaller by the mass left out",
        numbers, f"rollout.top_p=1.0 (here: {evidence.top_p}), if ratios are to start at 1",
    )  # fmt: skip


def _goes_with_likelihood(tokens: Tokens) -> float:
    """Correlation of the gap with the log-probability, by the sampler or the learner, whichever is the weaker.

    Noise on either side goes with that side's own log-probability, but not with the other's.
    """
    both = [_correlation(values, tokens.gap) for values in (tokens.behavior, tokens.behavior + tokens.gap)]
    return min(both, key=abs) if both[0] * both[1] > 0 else 0.0


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 0 and b.std() > 0 else 0.0
