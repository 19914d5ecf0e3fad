"""The conformance kit: every objective here passes it, and each of its checks catches the mistake that it is for."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlopt.config.compose import algorithms
from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs
from rlopt.objectives.__main__ import build, main
from rlopt.objectives.conformance import check
from rlopt.objectives.core import Traits, masked_mean
from rlopt.objectives.reinforce import REINFORCE


@pytest.mark.parametrize("name", algorithms())
def test_every_objective_passes_every_check(name: str) -> None:
    assert [(f.check, f.evidence) for f in check(build(name, [])) if not f.passed] == []


SOUND = Traits()


@dataclass(frozen=True)
class Broken:
    """REINFORCE with one mistake put in."""

    traits: Traits = SOUND
    average: Average = "token_mean"
    credit: Callable[[AdvantageInputs], Tensor] = REINFORCE().advantages
    per_token: Callable[[Batch, Tensor], Tensor] = lambda batch, policy: -batch.advantages * policy * batch.mask
    metric: str = "actor/pg_clipfrac"

    def advantages(self, inputs: AdvantageInputs) -> Tensor:
        return self.credit(inputs)

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return LossOutput(self.per_token(batch, scores.logprobs), {self.metric: masked_mean(batch.mask * 0, batch.mask)})


class WrongBackward(torch.autograd.Function):
    """Doubles the gradient on its way back, and nothing on its way there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def changes_its_input(inputs: AdvantageInputs) -> Tensor:
    inputs.rewards.mul_(2)
    return REINFORCE().advantages(inputs)


def divides_by_a_spread_of_zero(inputs: AdvantageInputs) -> Tensor:
    away = REINFORCE().advantages(inputs)
    return torch.stack([a / away[inputs.group == g].std() for a, g in zip(away, inputs.group, strict=True)])


def first_come_first_served(inputs: AdvantageInputs) -> Tensor:
    return REINFORCE().advantages(inputs) * torch.linspace(1, 2, len(inputs.rewards), dtype=torch.float64)


MISTAKES = {
    "credit by chance": (Broken(credit=lambda o: torch.rand(len(o.rewards)).double()), "Advantages are finite"),
    "credit that changes its input": (Broken(credit=changes_its_input), "Advantages are finite"),
    "credit of a wrong shape": (Broken(credit=lambda o: o.rewards[:2]), "Advantages are finite"),
    "a wrong backward pass": (
        Broken(per_token=lambda b, p: WrongBackward.apply(-b.advantages * p * b.mask)),  # type: ignore[no-untyped-call]
        "The gradient is the slope",
    ),
    "float32 inside": (
        Broken(per_token=lambda b, p: -b.advantages * 1e3 * p.float() * b.mask),
        "The gradient is the slope",
    ),
    "no gradient at all": (Broken(per_token=lambda b, p: -b.advantages * p.detach() * b.mask), "The gradient is the slope"),
    "the sign turned round": (Broken(per_token=lambda b, p: b.advantages * p * b.mask), "On policy a positive advantage"),
    "the best sample not best": (Broken(credit=lambda o: -REINFORCE().advantages(o)), "On policy a positive advantage"),
    "a claim that does not hold": (
        Broken(per_token=lambda b, p: -2 * b.advantages * p * b.mask),
        "On policy the gradient is -advantage x weight",
    ),
    "division by the padded width": (
        Broken(per_token=lambda b, p: -b.advantages * p * b.mask / p.shape[1]),
        "Padding changes neither",
    ),
    "credit by place": (Broken(credit=first_come_first_served), "The order of groups"),
    "division by the micro-batch": (
        Broken(per_token=lambda b, p: -b.advantages * p * b.mask / b.mask.sum().clamp(min=1)),
        "Micro-batches and ranks",
    ),
    "a mean over masked tokens": (
        Broken(per_token=lambda b, p: -b.advantages * p.mean(1, keepdim=True) * b.mask),
        "Tokens that the policy did not sample",
    ),
    "division by a spread of zero": (Broken(credit=divides_by_a_spread_of_zero), "A group of one, equal rewards"),
    "equal rewards with credit": (Broken(credit=lambda o: o.returns), "A group of one, equal rewards"),
    "a ratio of the whole sequence": (
        Broken(per_token=lambda b, p: -b.advantages * ((p - b.old_logprobs) * b.mask).sum(1, keepdim=True).exp() * b.mask),
        "Ratios of e^30",
    ),
    "a NaN made a number": (
        Broken(per_token=lambda b, p: -b.advantages * p.nan_to_num(-1.0) * b.mask),
        "NaN and infinity",
    ),
    "an anchor that it does not say it reads": (
        Broken(per_token=lambda b, p: -b.advantages * (p - b.old_logprobs).exp() * b.mask),
        "Log-probabilities of the past",
    ),
    "good samples that learn nothing": (
        Broken(traits=replace(SOUND, on_policy_identity=False), per_token=lambda b, p: -b.advantages.clamp(max=0) * p * b.mask),
        "On policy a positive advantage",
    ),
    "credit for a lone sample": (
        Broken(credit=lambda o: REINFORCE().advantages(o) + (o.group.bincount()[o.group] == 1).double()),
        "A group of one, equal rewards",
    ),
    "a metric without a definition": (Broken(metric="my/metric"), "Metrics have names"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_kit_finds(mistake: str) -> None:
    objective, title = MISTAKES[mistake]
    found = [finding.check for finding in check(objective) if not finding.passed]
    assert any(name.startswith(title) for name in found), found


def test_the_sound_original_of_the_broken_ones_passes() -> None:
    assert [f for f in check(Broken()) if not f.passed] == []


def test_a_metric_of_ones_own_is_named_objective() -> None:
    assert all(f.passed for f in check(Broken(metric="objective/mine")))


def test_a_stopped_gradient_is_not_mistaken_for_a_wrong_one() -> None:
    """Whatever way a constant is made: detach, no_grad, data, item."""

    def per_token(batch: Batch, policy: Tensor) -> Tensor:
        with torch.no_grad():
            ratio = (policy - batch.old_logprobs).exp() * batch.mask
        scale = 1 + policy.detach().abs().max().item() + policy.data.mean()
        return -batch.advantages * ratio * scale * policy * batch.mask

    findings = {f.check: f for f in check(Broken(per_token=per_token))}
    assert findings["The gradient is the slope of the loss, what it holds constant held constant"].passed


class RightBackward(torch.autograd.Function):
    """The exponential, with the backward pass that it has."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values.exp())
        return values.exp()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * gradient


def test_a_right_backward_pass_of_ones_own_is_not_mistaken_for_a_wrong_one() -> None:
    objective = Broken(
        traits=replace(SOUND, reads="anchor"),
        per_token=lambda b, p: -b.advantages * RightBackward.apply((p - b.old_logprobs) * b.mask) * b.mask,  # type: ignore[no-untyped-call]
    )
    assert [f for f in check(objective) if not f.passed] == []


def test_an_objective_that_raises_fails_with_its_message() -> None:
    def refuses(inputs: AdvantageInputs) -> Tensor:
        raise ValueError("not today")

    findings = check(Broken(credit=refuses))
    assert findings[0].evidence == "ValueError: not today"
    assert not findings[0].passed


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlopt.objectives", *arguments], capture_output=True, text=True)


def test_the_command_prints_a_table_and_exits_with_1_on_failure() -> None:
    good = command("check", "rec_oneside_nois", "clip_high=2.0")
    assert good.returncode == 0, good.stderr
    assert "13 of 13 checks passed" in good.stdout
    assert "clip_high=2.0" in good.stdout
    bad = subprocess.run(
        [sys.executable, "-m", "rlopt.objectives", "check", "user_objectives:Backwards"],
        capture_output=True, text=True, cwd="tests/unit",
    )  # fmt: skip
    assert bad.returncode == 1
    assert "FAILED" in bad.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "gpro"], "error: gpro: no such algorithm; one of a3po, "),
        (["check", "grpo", "clip_lo=1"], "error: clip_lo=1: no such key"),
        (["check", "grpo", "clip_low"], "error: clip_low: want field=value"),
        (["check", "rlopt.objectives.grpo:GRPO"], "error: clip_low: missing"),
        (["check", "nowhere:X"], "error: algo.objective=nowhere:X: cannot be imported"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m rlopt.objectives", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as refused:
        main()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
