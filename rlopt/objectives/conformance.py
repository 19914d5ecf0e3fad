"""The conformance kit: what every objective must do, tried on an objective in float64, with the evidence.

It knows nothing of any one algorithm. What an objective claims of itself (`Traits`) is tested; what it does not claim is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlopt.core.batches import Batch, PolicyOutputs, TokenInputs
from rlopt.core.errors import RloptError
from rlopt.data.microbatches import partition
from rlopt.objectives.conformance_data import (
    PLAIN,
    WIDTH,
    Trial,
    float32,
    gradient_of,
    make_trial,
    metrics_of,
    played_back,
    widened,
    widened_rows,
)
from rlopt.objectives.core import Objective, merge, total_loss
from rlopt.objectives.credit import advantage_inputs
from rlopt.tracking.metrics import DEFINITIONS

TOLERANCE = 1e-6
"""Of a comparison in float64, relative to the largest value at hand."""


@dataclass(frozen=True)
class Finding:
    """One check: what must hold, whether it does, and the number that shows it."""

    check: str
    passed: bool
    evidence: str


def check(objective: Objective) -> list[Finding]:
    """Every check, in order. A check that cannot be carried out has failed, and says why."""
    findings = []
    for run in CHECKS:
        try:
            evidence = run(objective)
            findings.append(Finding(_title(run), True, evidence))
        except _Failed as failed:
            findings.append(Finding(_title(run), False, str(failed)))
        except Exception as error:  # an objective may raise anything; the kit reports it as what it is, a failure
            findings.append(Finding(_title(run), False, f"{type(error).__name__}: {error}"))
    return findings


class _Failed(Exception):
    """What a check found wrong."""


def _title(run: Callable[..., str]) -> str:
    return (run.__doc__ or "").split(".")[0]


def credit_is_pure(objective: Objective) -> str:
    """Advantages are finite, of shape [B] or [B, T], and the same when asked again"""
    trial = make_trial(objective)
    inputs = advantage_inputs(trial.sequences, trial.old_logprobs, trial.reference, PLAIN)
    named = ("rewards", "returns", "group", "lengths", "random_key", *(f.name for f in fields(TokenInputs)))
    before = {name: getattr(inputs, name).clone() for name in named}
    first, second = objective.advantages(inputs), objective.advantages(inputs)
    _need(first.shape in (inputs.rewards.shape, inputs.mask.shape), f"shape {tuple(first.shape)}")
    _need(bool(torch.isfinite(first).all()), "an advantage is not finite")
    _need(torch.equal(first, second), "two calls differ: randomness must come from inputs.random_key")
    changed = [name for name, value in before.items() if not torch.equal(value, getattr(inputs, name))]
    _need(not changed, f"it changes its input: {changed}")
    return f"between {first.min():.3g} and {first.max():.3g}"


def gradient_is_the_slope(objective: Objective) -> str:
    """The gradient is the slope of the loss, what it holds constant held constant"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    tape: list[Any] = []
    gradient = gradient_of(objective, batch, trial.policy, tape)
    step, worst = 1e-6, 0.0
    for row, token in (batch.mask > 0).nonzero().tolist():
        nudge = torch.zeros_like(trial.policy)
        nudge[row, token] = step
        up, down = (played_back(objective, batch, trial.policy + sign * nudge, tape) for sign in (1, -1))
        slope = ((up - down) / (2 * step)).item()
        worst = max(worst, abs(slope - gradient[row, token].item()))
    largest = gradient.abs().max().item()
    _need(largest > 0, "the gradient is 0 everywhere")
    _need(worst <= 10 * TOLERANCE * largest + 1e-9, f"it is off by {worst:.1e} where the largest is {largest:.1e}")
    return f"off by at most {worst:.0e}, largest {largest:.2g}"


def good_rises_and_bad_falls(objective: Objective) -> str:
    """On policy a positive advantage raises the log-probability and a negative one lowers it"""
    trial = make_trial(objective).on_policy()
    batch = trial.batch(objective)
    push = -gradient_of(objective, batch, trial.policy)
    wrong = (push * batch.advantages < 0).nonzero()
    _need(not len(wrong), f"at sequence, token {wrong[:1].tolist()}")
    moved = int((push != 0).sum())
    for sign, what in ((1, "positive"), (-1, "negative")):
        credited = (batch.advantages * sign > 0) & (batch.mask > 0)
        _need(not credited.any() or bool((push[credited] != 0).any()), f"no token with a {what} advantage moves")
    score = (batch.advantages * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)
    rewards = trial.sequences.rewards
    for group in range(int(trial.sequences.group.max()) + 1):
        rows = trial.sequences.group == group
        best = rows & (rewards == rewards[rows].max())
        _need(
            bool(score[best].min() >= score[rows].max() - 1e-12),
            f"the best sample of group {int(group)} does not have the largest advantage",
        )
    return f"{moved} tokens move, each the right way"


def on_policy_it_is_policy_gradient(objective: Objective) -> str:
    """On policy the gradient is -advantage x weight, where that is claimed"""
    if not objective.traits.on_policy_identity:
        return "not claimed"
    trial = make_trial(objective).on_policy()
    batch = trial.batch(objective)
    return _close(gradient_of(objective, batch, trial.policy), -batch.advantages * batch.weights)


def padding_changes_nothing(objective: Objective) -> str:
    """Padding changes neither loss nor gradient"""
    trial = make_trial(objective)
    narrow = trial.batch(objective)
    padded = Trial(widened_rows(trial.sequences), *map(widened, (trial.old_logprobs, trial.reference, trial.policy)))
    _close(padded.batch(objective).advantages, narrow.advantages)
    wide = Batch(**{f.name: widened(v) if (v := getattr(narrow, f.name)).dim() == 2 else v for f in fields(narrow)})
    gradient = gradient_of(objective, wide, padded.policy)
    _need(bool((gradient[:, WIDTH:] == 0).all()), "padding has a gradient")
    return _close(gradient[:, :WIDTH], gradient_of(objective, narrow, trial.policy))


def order_changes_nothing(objective: Objective) -> str:
    """The order of groups, and of samples within them, changes nothing"""
    trial = make_trial(objective)
    gradient = gradient_of(objective, trial.batch(objective), trial.policy)
    groups = int(trial.sequences.group.max()) + 1
    order = [
        row for group in reversed(range(groups)) for row in (trial.sequences.group == group).nonzero()[:, 0].tolist()[::-1]
    ]
    turned_rows = trial.sequences.take(order)
    turned_rows = replace(turned_rows, group=groups - 1 - turned_rows.group)
    turned = Trial(turned_rows, *(part[order] for part in (trial.old_logprobs, trial.reference, trial.policy)))
    return _close(gradient_of(objective, turned.batch(objective), turned.policy), gradient[order])


def split_changes_nothing(objective: Objective) -> str:
    """Micro-batches and ranks change neither gradient nor metrics"""
    trial = make_trial(objective)
    update = trial.update(objective)
    batch = update.batch()
    whole = gradient_of(objective, batch, trial.policy)
    known = {name: metric.value for name, metric in metrics_of(objective, batch, trial.policy).items()}
    units = batch.group if objective.traits.unit == "group" else torch.arange(len(batch))
    together = int(units.bincount().max()) * WIDTH
    splits = [(ranks, budget) for ranks in (1, 2, 3) for budget in (together, 2 * together, 1000)]
    for ranks, budget in splits:
        gradient, metrics = torch.zeros_like(whole), []
        for rows in (rows for share in partition(batch.lengths, units, ranks, budget) for rows in share if rows):
            piece = update.take(rows).batch()
            width = piece.mask.shape[1]
            part = trial.policy[rows][:, :width]
            gradient[torch.tensor(rows), :width] = gradient_of(objective, piece, part)
            metrics.append(metrics_of(objective, piece, part))
            dummy = update.take(rows).dummy().batch()
            _need(bool((gradient_of(objective, dummy, part) == 0).all()), "a dummy micro-batch has a gradient")
            metrics.append(metrics_of(objective, dummy, part))
        _close(gradient, whole)
        for name, metric in merge(metrics).items():
            _need(abs(metric.value - known[name]) <= TOLERANCE * max(1, abs(known[name])), f"{name} depends on the split")
    return f"{len(splits)} splits, {len(known)} metrics"


def masked_tokens_have_no_say(objective: Objective) -> str:
    """Tokens that the policy did not sample have no gradient and do not matter"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    gradient = gradient_of(objective, batch, trial.policy)
    _need(bool((gradient[batch.mask == 0] == 0).all()), "a masked token has a gradient")
    elsewhere = trial.policy + (1 - batch.mask) * 3
    _close(gradient_of(objective, batch, elsewhere), gradient)
    return f"{int((batch.mask == 0).sum())} masked tokens"


def lone_equal_and_silent_samples_are_harmless(objective: Objective) -> str:
    """A group of one, equal rewards and a sample without tokens do no harm"""
    trial, said = make_trial(objective), []
    alone = trial.sequences.take([0])
    equal = replace(trial.sequences, rewards=torch.full_like(trial.sequences.rewards, 0.1))
    mask = trial.sequences.mask.clone()
    mask[1] = 0
    mute = replace(trial.sequences, mask=mask)
    for name, rows in (("one", alone), ("equal", equal), ("mute", mute)):
        here = [
            part[: len(rows), : rows.mask.shape[1]] * rows.mask for part in (trial.old_logprobs, trial.reference, trial.policy)
        ]
        tried = Trial(rows, *here)
        try:
            batch = tried.batch(objective)
        except RloptError:
            _need(objective.traits.unit == "group" and name != "mute", f"{name} refused")
            said.append(f"{name} refused")
            continue
        gradient = gradient_of(objective, batch, tried.policy)
        _need(bool(torch.isfinite(gradient).all()), f"{name}: the gradient is not finite")
        if name in ("one", "equal") and objective.traits.equal_rewards_no_credit:
            _need(
                bool((batch.advantages == 0).all()),
                f"{name}: advantages are not 0, and the claim is that equal rewards have none",
            )
        said.append(f"{name} fine")
    return ", ".join(said)


def extreme_ratios_stay_finite(objective: Objective) -> str:
    """Ratios of e^30 and e^-30 give finite losses and gradients, in float32"""
    trial, largest = make_trial(objective), 0.0
    for shift in (-30.0, 30.0):
        batch, policy = trial.batch(objective), trial.sequences.rollout_logprobs + shift
        small = Batch(**{f.name: float32(getattr(batch, f.name)) for f in fields(batch)})
        output = objective.loss(small, PolicyOutputs(float32(policy), torch.zeros_like(small.mask)))
        gradient = gradient_of(objective, small, float32(policy))
        _need(bool(torch.isfinite(output.per_token).all()), f"the loss at e^{shift:.0f} is not finite")
        _need(bool(torch.isfinite(gradient).all()), f"the gradient at e^{shift:.0f} is not finite")
        largest = max(largest, gradient.abs().max().item())
    return f"largest gradient {largest:.1e}"


def what_is_not_finite_is_refused(objective: Objective) -> str:
    """NaN and infinity in the input are refused by name"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    row, token = (batch.mask > 0).nonzero()[0].tolist()
    for bad in (torch.nan, torch.inf, -torch.inf):
        for name in ("logprobs", "rollout_logprobs", "old_logprobs", "reference", "advantages"):
            broken, policy = batch, trial.policy.clone()
            if name == "logprobs":
                policy[row, token] = bad
            else:
                column = getattr(batch, name).clone()
                column[row, token] = bad
                broken = replace(batch, **{name: column})
            try:
                total_loss(objective, PLAIN, broken, PolicyOutputs(policy, torch.zeros_like(policy)))
            except RloptError as refusal:
                _need(f".{name} " in str(refusal), f"{bad} in {name} is refused without its name: {refusal}")
            else:
                _need(False, f"{bad} in {name} goes through")
        policy = trial.policy.clone()
        policy[row, token] = torch.nan  # and the objective itself may not hide it from the check of its loss
        hidden = torch.isfinite(objective.loss(batch, PolicyOutputs(policy, torch.zeros_like(policy))).per_token[row, token])
        _need(not hidden, "the objective makes a number of a NaN")
    return "5 tensors, each by name and place"


def what_is_not_read_does_not_matter(objective: Objective) -> str:
    """Log-probabilities of the past that it does not say it reads do not matter"""
    reads = objective.traits.reads
    unread = {
        "nothing": ("old_logprobs", "rollout_logprobs"),
        "anchor": ("rollout_logprobs",),
        "behavior": ("old_logprobs",),
    }.get(reads, ())
    trial = make_trial(objective)
    batch = trial.batch(objective)
    gradient = gradient_of(objective, batch, trial.policy)
    for name in unread:
        moved = replace(batch, **{name: (getattr(batch, name) - 0.7) * batch.mask})
        _need(torch.equal(gradient_of(objective, moved, trial.policy), gradient), f"reads={reads}, and {name} matters")
    return f"reads {reads}; tried {', '.join(unread) or 'none'}"


def metrics_are_named(objective: Objective) -> str:
    """Metrics have names that a step may log"""
    trial = make_trial(objective)
    names = objective.loss(trial.batch(objective), PolicyOutputs(trial.policy, torch.zeros_like(trial.policy))).metrics
    unknown = sorted(name for name in names if name not in DEFINITIONS and not name.startswith("objective/"))
    _need(not unknown, f"{unknown}: begin those of your own with objective/")
    return ", ".join(sorted(names)) or "none"


CHECKS: tuple[Callable[[Objective], str], ...] = (
    credit_is_pure,
    gradient_is_the_slope,
    good_rises_and_bad_falls,
    on_policy_it_is_policy_gradient,
    padding_changes_nothing,
    order_changes_nothing,
    split_changes_nothing,
    masked_tokens_have_no_say,
    lone_equal_and_silent_samples_are_harmless,
    extreme_ratios_stay_finite,
    what_is_not_finite_is_refused,
    what_is_not_read_does_not_matter,
    metrics_are_named,
)


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Failed(otherwise)


def _close(found: Tensor, expected: Tensor) -> str:
    off, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    _need(off <= TOLERANCE * largest + 1e-12, f"off by {off:.1e} where the largest is {largest:.1e}")
    return f"off by at most {off:.0e}, largest {largest:.2g}"
