"""The conformance kit: what every objective must do, tried on an objective in float64, with the evidence.

It knows nothing of any one algorithm. What an objective claims of itself (`Traits`) is tested; what it does not claim is not.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlopt.batching import credit, judge, plan
from rlopt.errors import RloptError
from rlopt.metrics import DEFINITIONS
from rlopt.objectives.core import Objective, Terms, merge, total_loss
from rlopt.objectives.corrections import Correction, Corrections
from rlopt.types import Batch, Scores, Sequences

TOLERANCE = 1e-6
"""Of a comparison in float64, relative to the largest value at hand."""

OFF = Corrections(dual_clip=None, importance=Correction("none", None, "none", 0.0, 1.0), opsm_delta=None)
PLAIN = Terms(0.0, "k2", "loss", 0.0, OFF, 0.0, overlong_filter=False, limit=8, off_policy=False)
WIDTH = 9
"""Tokens of a sequence in the trial: two of prompt and up to seven of response."""


@dataclass(frozen=True)
class Finding:
    """One check: what must hold, whether it does, and the number that shows it."""

    check: str
    passed: bool
    evidence: str


@dataclass(frozen=True, eq=False)
class Trial:
    """A step's data that an objective is tried on, with the policy's log-probabilities; everything `[B, T]` in float64."""

    sequences: Sequences
    anchor: Tensor
    reference: Tensor
    policy: Tensor

    def batch(self, objective: Objective) -> Batch:
        (batch,) = credit(self.sequences, self.anchor, self.reference, objective, PLAIN)
        return batch

    def on_policy(self) -> "Trial":
        """The same data with policy, anchor and behavior alike."""
        return replace(self, anchor=self.sequences.behavior, policy=self.sequences.behavior)


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
    outcomes = judge(trial.sequences, trial.anchor, trial.reference, PLAIN)
    before = {f.name: getattr(outcomes, f.name).clone() for f in fields(outcomes)}
    first, second = objective.advantages(outcomes), objective.advantages(outcomes)
    _need(first.shape in (outcomes.rewards.shape, outcomes.mask.shape), f"shape {tuple(first.shape)}")
    _need(bool(torch.isfinite(first).all()), "an advantage is not finite")
    _need(torch.equal(first, second), "two calls differ: chance must come from outcomes.lottery")
    changed = [name for name, value in before.items() if not torch.equal(value, getattr(outcomes, name))]
    _need(not changed, f"it changes its input: {changed}")
    return f"between {first.min():.3g} and {first.max():.3g}"


def gradient_is_the_slope(objective: Objective) -> str:
    """The gradient is the slope of the loss, what it holds constant held constant"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    tape: list[Any] = []
    gradient = _gradient(objective, batch, trial.policy, tape)
    step, worst = 1e-6, 0.0
    for row, token in (batch.mask > 0).nonzero().tolist():
        nudge = torch.zeros_like(trial.policy)
        nudge[row, token] = step
        up, down = (_played_back(objective, batch, trial.policy + sign * nudge, tape) for sign in (1, -1))
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
    push = -_gradient(objective, batch, trial.policy)
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
            f"the best sample of group {int(group)} has not the best credit",
        )
    return f"{moved} tokens move, each the right way"


def on_policy_it_is_policy_gradient(objective: Objective) -> str:
    """On policy the gradient is -advantage x weight, where that is claimed"""
    if not objective.traits.on_policy_identity:
        return "not claimed"
    trial = make_trial(objective).on_policy()
    batch = trial.batch(objective)
    return _close(_gradient(objective, batch, trial.policy), -batch.advantages * batch.weights)


def padding_changes_nothing(objective: Objective) -> str:
    """Padding changes neither loss nor gradient"""
    trial = make_trial(objective)
    narrow = trial.batch(objective)
    padded = Trial(_widened_rows(trial.sequences), *map(_widened, (trial.anchor, trial.reference, trial.policy)))
    _close(padded.batch(objective).advantages, narrow.advantages)
    wide = Batch(**{f.name: _widened(v) if (v := getattr(narrow, f.name)).dim() == 2 else v for f in fields(narrow)})
    gradient = _gradient(objective, wide, padded.policy)
    _need(bool((gradient[:, WIDTH:] == 0).all()), "padding has a gradient")
    return _close(gradient[:, :WIDTH], _gradient(objective, narrow, trial.policy))


def order_changes_nothing(objective: Objective) -> str:
    """The order of groups, and of samples within them, changes nothing"""
    trial = make_trial(objective)
    gradient = _gradient(objective, trial.batch(objective), trial.policy)
    groups = int(trial.sequences.group.max()) + 1
    order = [
        row for group in reversed(range(groups)) for row in (trial.sequences.group == group).nonzero()[:, 0].tolist()[::-1]
    ]
    turned_rows = trial.sequences.take(order)
    turned_rows = replace(turned_rows, group=groups - 1 - turned_rows.group)
    turned = Trial(turned_rows, *(part[order] for part in (trial.anchor, trial.reference, trial.policy)))
    return _close(_gradient(objective, turned.batch(objective), turned.policy), gradient[order])


def split_changes_nothing(objective: Objective) -> str:
    """Micro-batches and ranks change neither gradient nor metrics"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    whole = _gradient(objective, batch, trial.policy)
    known = {name: metric.value for name, metric in _metrics(objective, batch, trial.policy).items()}
    units = batch.group if objective.traits.unit == "group" else torch.arange(len(batch))
    together = int(units.bincount().max()) * WIDTH
    splits = [(ranks, budget) for ranks in (1, 2, 3) for budget in (together, 2 * together, 1000)]
    for ranks, budget in splits:
        gradient, metrics = torch.zeros_like(whole), []
        for rows in (rows for share in plan(batch.lengths, units, ranks, budget) for rows in share if rows):
            piece = batch.take(rows)
            width = piece.mask.shape[1]
            part = trial.policy[rows][:, :width]
            gradient[torch.tensor(rows), :width] = _gradient(objective, piece, part)
            metrics.append(_metrics(objective, piece, part))
            silent = piece.silent()
            _need(bool((_gradient(objective, silent, part) == 0).all()), "a silent micro-batch has a gradient")
            metrics.append(_metrics(objective, silent, part))
        _close(gradient, whole)
        for name, metric in merge(metrics).items():
            _need(abs(metric.value - known[name]) <= TOLERANCE * max(1, abs(known[name])), f"{name} depends on the split")
    return f"{len(splits)} splits, {len(known)} metrics"


def masked_tokens_have_no_say(objective: Objective) -> str:
    """Tokens that the policy did not speak have no gradient and do not matter"""
    trial = make_trial(objective)
    batch = trial.batch(objective)
    gradient = _gradient(objective, batch, trial.policy)
    _need(bool((gradient[batch.mask == 0] == 0).all()), "a masked token has a gradient")
    elsewhere = trial.policy + (1 - batch.mask) * 3
    _close(_gradient(objective, batch, elsewhere), gradient)
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
        here = [part[: len(rows), : rows.mask.shape[1]] * rows.mask for part in (trial.anchor, trial.reference, trial.policy)]
        tried = Trial(rows, *here)
        try:
            batch = tried.batch(objective)
        except RloptError:
            _need(objective.traits.unit == "group" and name != "mute", f"{name} refused")
            said.append(f"{name} refused")
            continue
        gradient = _gradient(objective, batch, tried.policy)
        _need(bool(torch.isfinite(gradient).all()), f"{name}: the gradient is not finite")
        if name in ("one", "equal") and objective.traits.equal_rewards_no_credit:
            _need(bool((batch.advantages == 0).all()), f"{name}: credit is given, and the claim is that equal rewards get none")
        said.append(f"{name} fine")
    return ", ".join(said)


def extreme_ratios_stay_finite(objective: Objective) -> str:
    """Ratios of e^30 and e^-30 give finite losses and gradients, in float32"""
    trial, largest = make_trial(objective), 0.0
    for shift in (-30.0, 30.0):
        batch, policy = trial.batch(objective), trial.sequences.behavior + shift
        small = Batch(**{f.name: _float32(getattr(batch, f.name)) for f in fields(batch)})
        output = objective.loss(small, Scores(_float32(policy), torch.zeros_like(small.mask)))
        gradient = _gradient(objective, small, _float32(policy))
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
        for name in ("logprobs", "behavior", "anchor", "reference", "advantages"):
            broken, policy = batch, trial.policy.clone()
            if name == "logprobs":
                policy[row, token] = bad
            else:
                column = getattr(batch, name).clone()
                column[row, token] = bad
                broken = replace(batch, **{name: column})
            try:
                total_loss(objective, PLAIN, broken, Scores(policy, torch.zeros_like(policy)))
            except RloptError as refusal:
                _need(f".{name} " in str(refusal), f"{bad} in {name} is refused without its name: {refusal}")
            else:
                _need(False, f"{bad} in {name} goes through")
        policy = trial.policy.clone()
        policy[row, token] = torch.nan  # and the objective itself may not hide it from the check of its loss
        hidden = torch.isfinite(objective.loss(batch, Scores(policy, torch.zeros_like(policy))).per_token[row, token])
        _need(not hidden, "the objective makes a number of a NaN")
    return "5 tensors, each by name and place"


def what_is_not_read_does_not_matter(objective: Objective) -> str:
    """Log-probabilities of the past that it does not say it reads do not matter"""
    reads = objective.traits.reads
    unread = {"nothing": ("anchor", "behavior"), "anchor": ("behavior",), "behavior": ("anchor",)}.get(reads, ())
    trial = make_trial(objective)
    batch = trial.batch(objective)
    gradient = _gradient(objective, batch, trial.policy)
    for name in unread:
        moved = replace(batch, **{name: (getattr(batch, name) - 0.7) * batch.mask})
        _need(torch.equal(_gradient(objective, moved, trial.policy), gradient), f"reads={reads}, and {name} matters")
    return f"reads {reads}; tried {', '.join(unread) or 'none'}"


def metrics_are_named(objective: Objective) -> str:
    """Metrics have names that a step may log"""
    trial = make_trial(objective)
    names = objective.loss(trial.batch(objective), Scores(trial.policy, torch.zeros_like(trial.policy))).metrics
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


def make_trial(objective: Objective) -> Trial:
    """Groups of unequal samples with unequal lengths, some tokens not the policy's own, and a policy that has moved far enough
    to be clipped on both sides."""
    rows = objective.traits.rows
    rewards = {"groups": [1.0, 0.0, 0.0, 0.5], "answers": [1.0]}.get(rows, [1.0, 0.0])
    groups = 4
    count = groups * len(rewards)
    chance = torch.Generator().manual_seed(0)
    shape = count, WIDTH
    lengths = 4 + torch.arange(count) * 5 % 6
    lengths[0] = WIDTH
    place = torch.arange(WIDTH)
    mask = ((place >= 2) & (place < lengths[:, None])).double()
    mask[:, 4] *= torch.arange(count) % 3 != 0  # what a tool said

    def draw(scale: float) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64) * scale

    behavior = -(draw(1.0).abs() + 0.3) * mask
    proximal = behavior + draw(0.2) * mask if objective.traits.reads == "proximal" else behavior
    sequences = Sequences(
        token_ids=torch.ones(shape, dtype=torch.int64),
        lengths=lengths,
        mask=mask,
        behavior=behavior,
        rewards=torch.tensor([r for turn in range(groups) for r in _turned(rewards, turn)], dtype=torch.float64),
        group=torch.arange(count) // len(rewards),
        truncated=torch.zeros(count, dtype=torch.bool),
        lottery=torch.rand(count, generator=chance, dtype=torch.float64),
        lag=torch.arange(count) % 4,
    )
    return Trial(sequences, proximal, behavior + draw(0.3) * mask, (proximal + draw(0.5)).clamp(max=-1e-3) * mask)


def _turned(values: list[float], turn: int) -> list[float]:
    turn %= len(values)
    return values[turn:] + values[:turn]


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Failed(otherwise)


def _close(found: Tensor, expected: Tensor) -> str:
    off, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    _need(off <= TOLERANCE * largest + 1e-12, f"off by {off:.1e} where the largest is {largest:.1e}")
    return f"off by at most {off:.0e}, largest {largest:.2g}"


def _gradient(objective: Objective, batch: Batch, policy: Tensor, tape: list[Any] | None = None) -> Tensor:
    """`[B, T]`; with a `tape`, everything that the objective holds constant is recorded on it."""
    leaf = policy.clone().requires_grad_()
    with _Tape([] if tape is None else tape, record=True):
        per_token = objective.loss(batch, Scores(leaf, torch.zeros_like(policy))).per_token
    loss = (per_token * batch.weights).sum()
    if not loss.requires_grad:
        return torch.zeros_like(policy)
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(policy) if gradient is None else gradient


def _played_back(objective: Objective, batch: Batch, policy: Tensor, tape: list[Any]) -> Tensor:
    """The loss with every constant as it was recorded."""
    with _Tape(tape, record=False):
        per_token = objective.loss(batch, Scores(policy.clone().requires_grad_(), torch.zeros_like(policy))).per_token
    return (per_token * batch.weights).sum().detach()


class _Tape(TorchFunctionMode):
    """Records what leaves the gradient (`detach`, `data`, `item`, anything under `no_grad`), or plays it back in that order.

    A finite difference of a loss with stop-gradients must move the differentiated parts alone. The inside of a custom
    `autograd.Function` runs without gradients too, and is no constant: it is left alone.
    """

    def __init__(self, tape: list[Any], record: bool) -> None:
        super().__init__()
        self._tape, self._record, self._position = tape, record, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if any(frame.f_code.co_name == "forward" and "ctx" in frame.f_locals for frame in _frames()):
            return value
        leaves = func in (Tensor.detach, Tensor.item, Tensor.tolist, Tensor.data.__get__)  # type: ignore[attr-defined]
        if not (leaves or (not torch.is_grad_enabled() and isinstance(value, Tensor))):
            return value
        if self._record:
            self._tape.append(value)
            return value
        self._position += 1
        return self._tape[self._position - 1]


def _frames() -> Iterator[FrameType]:
    """Who called, from the nearest on."""
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        yield frame


def _metrics(objective: Objective, batch: Batch, policy: Tensor) -> Any:
    return objective.loss(batch, Scores(policy, torch.zeros_like(policy))).metrics


def _widened(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 3))


def _widened_rows(rows: Sequences) -> Sequences:
    return Sequences(**{f.name: _widened(v) if (v := getattr(rows, f.name)).dim() == 2 else v for f in fields(rows)})


def _float32(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
