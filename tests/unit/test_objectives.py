"""The objectives against float64 reference values, and the properties that every one of them has."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlopt.batching import weights
from rlopt.errors import RloptError
from rlopt.objectives.advantages import centered, standardized
from rlopt.objectives.core import Objective, Terms, kl, total_loss
from rlopt.objectives.grpo import GRPO
from rlopt.objectives.rec_oneside_nois import RecOneSideNoIS
from rlopt.objectives.red_weight import RedWeight
from rlopt.types import Batch, Scores

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())
NO_TERMS = Terms(kl_coef=0.0, kl_estimator="k2", entropy_coef=0.0)

REC = GRPO(clip_low=0.2, clip_high=0.2, std="population", surrogate="rec", dual_clip=None)
PPO = GRPO(clip_low=0.2, clip_high=0.2, std="sample", surrogate="ppo", dual_clip=None)
DUAL = GRPO(clip_low=0.2, clip_high=0.2, std="sample", surrogate="ppo", dual_clip=3.0)
ALL = [REC, PPO, DUAL, RecOneSideNoIS(clip_low=0.2, clip_high=0.2), RedWeight(temperature=1.0)]

CASES = {
    "GRPO-as-REC(one-side,IS,std ddof0)": REC,
    "GRPO(ppo-clip 0.2, no dual-clip, std ddof1, token-mean)": PPO,
    "GRPO(ppo-clip 0.2, dual-clip 3, std ddof1, token-mean)": DUAL,
    "REC-OneSide-NoIS(0.2)": RecOneSideNoIS(clip_low=0.2, clip_high=0.2),
    "REC-OneSide-NoIS(0.6,2.0)": RecOneSideNoIS(clip_low=0.6, clip_high=2.0),
    "RED-Weight(T=1)": RedWeight(temperature=1.0),
    "RED-Weight(T=0.5)": RedWeight(temperature=0.5),
    "RED-Weight(T=1)/group4": RedWeight(temperature=1.0),
}


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch_of(objective: Objective, fixture: dict[str, object]) -> Batch:
    mask = double(fixture["mask"])
    advantages = objective.advantages(double(fixture["rewards"]))[:, None] * mask
    return Batch(
        token_ids=torch.ones(mask.shape, dtype=torch.int64),
        lengths=torch.full((len(mask),), mask.shape[1]),
        mask=mask,
        behavior=double(fixture["old"]),
        advantages=advantages,
        weights=weights(mask, objective.average),
        lag=torch.zeros(len(mask), dtype=torch.int64),
    )


def loss_and_gradient(objective: Objective, batch: Batch, policy: Tensor, terms: Terms = NO_TERMS) -> tuple[Tensor, Tensor]:
    policy = policy.clone().requires_grad_()
    scores = Scores(policy, torch.zeros_like(policy), torch.zeros_like(policy))
    loss = (total_loss(objective, terms, batch, scores).per_token * batch.weights).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_reference_values(name: str) -> None:
    case = GOLDEN["cases"][name]
    fixture = GOLDEN["fixtures"][case["fixture"]]
    batch = batch_of(CASES[name], fixture)
    torch.testing.assert_close(batch.advantages, double(case["advantages"]), atol=1e-6, rtol=0)
    loss, gradient = loss_and_gradient(CASES[name], batch, double(fixture["new"]))
    torch.testing.assert_close(loss, double(case["loss"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, double(case["grad"]), atol=1e-6, rtol=0)


def test_clip_fraction_counts_the_tokens_whose_gradient_is_gone() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    for name in ("REC-OneSide-NoIS(0.2)", "GRPO-as-REC(one-side,IS,std ddof0)"):
        batch = batch_of(CASES[name], fixture)
        output = CASES[name].loss(batch, Scores(double(fixture["new"]), double(fixture["new"]), double(fixture["new"])))
        assert output.metrics["actor/pg_clipfrac"].value == pytest.approx(2 / 6)
    batch = batch_of(DUAL, fixture)  # the third token of the second response is bounded by the dual clip
    output = DUAL.loss(batch, Scores(double(fixture["new"]), double(fixture["new"]), double(fixture["new"])))
    assert output.metrics["actor/pg_clipfrac"].value == pytest.approx(3 / 6)


def test_advantages_equal_the_reference_values() -> None:
    golden = GOLDEN["advantages"]
    for rewards, key in ((golden["rewards_base"], ""), (golden["group4_rewards"], "group4_")):
        expected_mean = golden["mean_only(REC/Dr.GRPO)" if not key else "group4_mean_only"]
        population = golden["grpo_std_ddof0_eps1e-6(REC std_normalize)" if not key else "group4_grpo_ddof0"]
        sample = golden["grpo_std_ddof1_eps1e-6" if not key else "group4_grpo_ddof1"]
        torch.testing.assert_close(centered(double(rewards)), double(expected_mean))
        torch.testing.assert_close(standardized(double(rewards), "population"), double(population))
        torch.testing.assert_close(standardized(double(rewards), "sample"), double(sample))


@pytest.mark.parametrize("std", ["population", "sample"])
def test_a_group_of_one_and_a_group_of_equals_get_no_credit(std: str) -> None:
    assert standardized(double([3.0]), std).tolist() == [0.0]  # type: ignore[arg-type]
    assert standardized(double([1.0, 1.0, 1.0]), std).tolist() == [0.0, 0.0, 0.0]  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_equal_the_reference_values(estimator: str) -> None:
    fixture, golden = GOLDEN["fixtures"]["base"], GOLDEN["kl"][estimator]
    policy = double(fixture["new"]).requires_grad_()
    per_token = kl(estimator, policy, double(fixture["ref"]))  # type: ignore[arg-type]
    torch.testing.assert_close(per_token.detach(), double(golden["per_token"]))
    (gradient,) = torch.autograd.grad(per_token.mean(), policy)
    torch.testing.assert_close(gradient, double(golden["grad_of_token_mean"]))


def test_statistics_equal_the_reference_values() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    golden = GOLDEN["kl"]["off_policy_diagnostics(new vs old)"]
    scores = Scores(double(fixture["new"]), double(fixture["new"]), double(fixture["ref"]))
    metrics = total_loss(REC, NO_TERMS, batch_of(REC, fixture), scores).metrics
    assert metrics["offpolicy/behavior_kl"].value == pytest.approx(golden["ppo_kl = mean(old-new)"])
    assert metrics["offpolicy/ess"].value == pytest.approx(golden["ESS_token = (sum r)^2/(n sum r^2)"])
    assert metrics["offpolicy/ratio_max"].value == pytest.approx(3.6692966676192444)
    assert metrics["actor/kl_k2"].value == pytest.approx(GOLDEN["kl"]["k2"]["token_mean"])


@pytest.mark.parametrize("objective", ALL)
def test_the_gradient_is_the_slope_of_the_loss_or_of_its_stopped_form(objective: Objective) -> None:
    """On policy, where nothing is clipped, every coefficient is A (times RED-Weight's weight)."""
    fixture = GOLDEN["fixtures"]["base"]
    batch = batch_of(objective, fixture)
    _, gradient = loss_and_gradient(objective, batch, double(fixture["old"]))
    coefficient = batch.advantages * (torch.exp(batch.advantages) if isinstance(objective, RedWeight) else 1)
    torch.testing.assert_close(gradient, -coefficient * batch.weights)


@pytest.mark.parametrize("objective", ALL)
def test_masked_tokens_have_no_gradient_and_do_not_count(objective: Objective) -> None:
    fixture = GOLDEN["fixtures"]["base"] | {"mask": [[1, 1, 0], [1, 0, 0]]}
    batch = batch_of(objective, fixture)
    policy = double(fixture["new"])
    loss, gradient = loss_and_gradient(objective, batch, policy)
    assert (gradient[batch.mask == 0] == 0).all()
    changed = policy + (1 - batch.mask) * 5
    torch.testing.assert_close(loss_and_gradient(objective, batch, changed)[0], loss)


@pytest.mark.parametrize("objective", ALL)
def test_padding_changes_neither_loss_nor_gradient(objective: Objective) -> None:
    fixture = GOLDEN["fixtures"]["base"]
    wide = {key: [[*row, 0.0, 0.0] for row in fixture[key]] for key in ("new", "old", "mask")}
    loss, gradient = loss_and_gradient(objective, batch_of(objective, fixture), double(fixture["new"]))
    batch = batch_of(objective, fixture | wide)
    wide_loss, wide_gradient = loss_and_gradient(objective, batch, double(wide["new"]))
    torch.testing.assert_close(wide_loss, loss)
    torch.testing.assert_close(wide_gradient[:, :3], gradient)


@pytest.mark.parametrize("objective", ALL)
def test_extreme_ratios_stay_finite(objective: Objective) -> None:
    fixture = GOLDEN["fixtures"]["base"]
    batch = batch_of(objective, fixture)
    for shift in (-30.0, 30.0):
        loss, gradient = loss_and_gradient(objective, batch, double(fixture["old"]) + shift)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_terms_add_kl_and_subtract_entropy() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    batch = batch_of(REC, fixture)
    scores = Scores(double(fixture["new"]), torch.full((2, 3), 0.7, dtype=torch.float64), double(fixture["ref"]))
    plain = (total_loss(REC, NO_TERMS, batch, scores).per_token * batch.weights).sum()
    full = total_loss(REC, Terms(kl_coef=0.5, kl_estimator="k3", entropy_coef=0.1), batch, scores)
    expected = plain + 0.5 * GOLDEN["kl"]["k3"]["token_mean"] - 0.1 * 0.7
    torch.testing.assert_close((full.per_token * batch.weights).sum(), expected)
    assert full.metrics["actor/pg_loss"].value == pytest.approx(plain.item())


def test_dual_clip_without_the_ppo_surrogate_is_refused() -> None:
    with pytest.raises(RloptError, match="algo.dual_clip=3.0: needs algo.surrogate=ppo"):
        replace(REC, dual_clip=3.0)
