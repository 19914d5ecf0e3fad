"""The objectives against float64 reference values. What every objective must do besides is the conformance kit's to test."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from builders import loss_weights, terms
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Batch, PolicyOutputs, TokenInputs
from rlopt.core.errors import RloptError
from rlopt.objectives.a3po import A3PO
from rlopt.objectives.advantages import (
    above_log_mean_exp,
    by_turn,
    centered,
    leave_one_out,
    overlong_penalty,
    returns_to_go,
    standardized,
)
from rlopt.objectives.aspo import ASPO
from rlopt.objectives.asymre import AsymRE
from rlopt.objectives.bapo import BAPO
from rlopt.objectives.cispo import CISPO
from rlopt.objectives.core import LossTerms, Objective, WithAdvantages, total_loss
from rlopt.objectives.corrections import NO_CORRECTIONS, Correction, Corrections, importance_weight
from rlopt.objectives.dapo import DAPO
from rlopt.objectives.decoupled_ppo import DecoupledPPO
from rlopt.objectives.divergence import kl
from rlopt.objectives.dpo import DPO
from rlopt.objectives.dppo import DPPO
from rlopt.objectives.dr_grpo import DrGRPO
from rlopt.objectives.gepo import GEPO
from rlopt.objectives.gmpo import GMPO
from rlopt.objectives.grpo import GRPO
from rlopt.objectives.gspo import GSPO
from rlopt.objectives.luspo import LUSPO
from rlopt.objectives.m2po import M2PO, second_moment_mask
from rlopt.objectives.opmd import OPMD, OPMDScaled, OPMDToken
from rlopt.objectives.pmd import PMD
from rlopt.objectives.rec import OneSide, Ring, SequenceOneSide, TwoSide
from rlopt.objectives.red import REDDrop, REDWeight
from rlopt.objectives.red_weight_adaptive import balancing_temperature
from rlopt.objectives.reinforce import REINFORCE
from rlopt.objectives.reinforce_pp import REINFORCEPP
from rlopt.objectives.rloo import RLOO
from rlopt.objectives.sapo import SAPO
from rlopt.objectives.sppo import SPPO
from rlopt.objectives.step_dpo import StepDPO
from rlopt.objectives.topr import TOPR
from rlopt.objectives.vespo import VESPO

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())
ANY = 1e9
"""A clip that never bites."""


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """How the fixture's columns are laid out for one reference value: whose log-probabilities sampled, and which anchor."""

    objective: Objective
    corrections: Corrections = NO_CORRECTIONS
    rollout_logprobs: str = "old"
    old_logprobs: str = "old"
    random_key: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    lag: int = 0


def grpo(clip_low: float = 0.2, clip_high: float = 0.2, average: str = "token_mean") -> GRPO:
    return GRPO(clip_low=clip_low, clip_high=clip_high, std="sample", average=average)  # type: ignore[arg-type]


def one_side(low: float = 0.2, high: float = 0.2, weighted: bool = False, std: str = "none") -> OneSide:
    return OneSide(clip_low=low, clip_high=high, importance_sampling=weighted, std=std)  # type: ignore[arg-type]


def two_side(weighted: bool) -> TwoSide:
    return TwoSide(clip_low=0.2, clip_high=0.2, importance_sampling=weighted)


def ring(weighted: bool) -> Ring:
    return Ring(clip_low=0.2, clip_high=0.2, outer_low=0.6, outer_high=2.0, importance_sampling=weighted)


def decoupled(cap: float) -> DecoupledPPO:
    return DecoupledPPO(clip_low=0.2, clip_high=0.2, cap=cap, std="sample")


def dual(bound: float) -> Corrections:
    return replace(NO_CORRECTIONS, dual_clip=bound)


def corrected(weight: str, cap: float | None, mask: str) -> Case:
    importance = Correction(weight=weight, cap=cap, mask=mask, low=0.5, high=2.0)  # type: ignore[arg-type]
    return Case(grpo(), replace(NO_CORRECTIONS, importance=importance), rollout_logprobs="rollout")


def dppo(divergence: str, bound: float, drift: float = 0.0, std: str = "sample") -> Case:
    objective = DPPO(divergence=divergence, bound=bound, drift=drift, std=std)  # type: ignore[arg-type]
    return Case(objective, rollout_logprobs="rollout", old_logprobs="rollout")


CASES = {
    "REINFORCE": Case(REINFORCE()),
    "REINFORCE/group4": Case(REINFORCE()),
    "REC-OneSide-NoIS(0.2)": Case(one_side()),
    "REC-OneSide-NoIS(0.6,2.0)": Case(one_side(0.6, 2.0)),
    "REC-OneSide-IS(0.2)": Case(one_side(weighted=True)),
    "REC-TwoSide-NoIS(0.2)": Case(two_side(False)),
    "REC-TwoSide-IS(0.2)": Case(two_side(True)),
    "REC-Ring-NoIS(0.2,0.2;0.6,2.0)": Case(ring(False)),
    "REC-Ring-IS(0.2,0.2;0.6,2.0)": Case(ring(True)),
    "GRPO-as-REC(one-side,IS,std ddof0)": Case(one_side(weighted=True, std="population")),
    "REC-GSPO-NoIS(3e-4,4e-4)": Case(SequenceOneSide(clip_low=3e-4, clip_high=4e-4, importance_sampling=False)),
    "REC-GSPO-IS(0.2,0.5)": Case(SequenceOneSide(clip_low=0.2, clip_high=0.5, importance_sampling=True)),
    "RED-Weight(T=1)": Case(REDWeight(temperature=1.0)),
    "RED-Weight(T=0.5)": Case(REDWeight(temperature=0.5)),
    "RED-Weight(T=1)/group4": Case(REDWeight(temperature=1.0)),
    "RED-Drop(keep_neg=[1])/group4": Case(REDDrop(), random_key=(0.5, 0.9, 0.1, 0.2)),
    "REP-AsymRE(forward-kl 0.1)": Case(AsymRE(shift=-0.1, tau=0.0)),
    "AsymRE(shift -0.1, tau=0)": Case(AsymRE(shift=-0.1, tau=0.0)),
    "AsymRE-Trinity(shift -0.1, tau=1 default -> halved)": Case(AsymRE(shift=-0.1, tau=1.0)),
    "REP-OPMD(k2 0.1)": Case(OPMDToken(coef=0.1)),
    "OPMD-Kimi(sequence, tau=0.1)": Case(OPMD(tau=0.1)),
    "OPMD-Trinity(mean baseline, tau=1)": Case(OPMDScaled(tau=1.0, baseline="mean")),
    "OPMD-Trinity(logavgexp baseline, tau=1)": Case(OPMDScaled(tau=1.0, baseline="log_mean_exp")),
    "PMD-OpenKimi(seq-mean-token-mean, tau=0.1)": Case(PMD(tau=0.1)),
    "GRPO(ppo-clip 0.2, dual-clip 3, std ddof1, token-mean)": Case(grpo(), dual(3.0)),
    "GRPO(ppo-clip 0.2, no dual-clip, std ddof1, token-mean)": Case(grpo()),
    "GRPO-original(ppo-clip 0.2, std ddof1, seq-mean-token-mean)": Case(grpo(average="sequence_mean")),
    "GRPO(seq-mean-token-sum)": Case(grpo(average="sequence_sum")),
    "GRPO two-sided clip (delta=4)": Case(grpo(), dual(4.0)),
    "GRPO two-sided clip (delta=3)": Case(grpo(), dual(3.0)),
    "ImportanceSampling(no clip)": Case(grpo(ANY, ANY)),
    "DAPO(clip 0.2/0.28, token-mean)": Case(DAPO(clip_low=0.2, clip_high=0.28, std="sample")),
    "Dr.GRPO(mean-only, sum/(N*4))": Case(DrGRPO(clip_low=0.2, clip_high=0.2, average="constant")),
    "Dr.GRPO(verl seq-mean-token-sum-norm, norm=4)": Case(DrGRPO(clip_low=0.2, clip_high=0.2, average="constant_sum")),
    "RLOO+ppo-clip": Case(RLOO(clip_low=0.2, clip_high=0.2, average="token_mean")),
    "sPPO(eps=0.3)": Case(SPPO(clip=0.3)),
    "GSPO(0.0003,0.0004)": Case(GSPO(clip_low=3e-4, clip_high=4e-4, std="sample")),
    "GSPO(0.2,0.5)": Case(GSPO(clip_low=0.2, clip_high=0.5, std="sample")),
    "GSPO-direct(0.2,0.5)": Case(GSPO(clip_low=0.2, clip_high=0.5, std="sample")),
    "GMPO(log-clip 0.4)": Case(GMPO(clip_log=0.4, std="sample")),
    "GEPO(clip 0.2)": Case(GEPO(clip=0.2, std="sample")),
    "GEPO(no clip)": Case(GEPO(clip=ANY, std="sample")),
    "LUSPO(2e-3,2.5e-3)": Case(LUSPO(clip_low=2e-3, clip_high=2.5e-3, std="sample")),
    "CISPO(clamp r to [0,1.28])": Case(CISPO(clip_low=1.0, clip_high=0.28, std="sample")),
    "CISPO-ScaleRL(clamp r to [0,5])": Case(CISPO(clip_low=1.0, clip_high=4.0, std="sample")),
    "SAPO(paper/verl/TRL, tau 1.0/1.05)": Case(SAPO(tau_positive=1.0, tau_negative=1.05, std="sample", gate_only=False)),
    "SAPO-Trinity-0.6.0(DIFFERENT: gate*logp, token-mean)": Case(
        SAPO(tau_positive=1.0, tau_negative=1.05, std="sample", gate_only=True)
    ),
    "TOPR-paper(sequence ratio, R=+1/-1, mean over sequences)": Case(TOPR(ratio="sequence", rewards="signed", baseline=0.0)),
    "TOPR-Trinity(token ratio, R=+1/-1, token-mean)": Case(TOPR(ratio="token", rewards="signed", baseline=0.0)),
    "TOPR-Trinity(token ratio, mean-baseline advantages)": Case(TOPR(ratio="token", rewards="centered", baseline=0.0)),
    "ASPO(eps 0.2, dual 3, token-mean)": Case(ASPO(clip_low=0.2, clip_high=0.2, cap=3.0, std="sample")),
    "VESPO(k 2/3, lambda 3/2, token-mean)": Case(
        VESPO(k_positive=2.0, lambda_positive=3.0, k_negative=3.0, lambda_negative=2.0, std="sample")
    ),
    "GRPO-clip + tis-token": corrected("token", 2.0, "none"),
    "GRPO-clip + mis-token(icepop)": corrected("token", None, "token"),
    "GRPO-clip + tis-sequence": corrected("sequence", 2.0, "none"),
    "GRPO-clip + mis-sequence": corrected("sequence", None, "sequence"),
    "GRPO-clip + geo-mask*token-tis": corrected("token", 2.0, "geometric"),
    "GRPO-clip + geo-mask*token-ratio-unclamped(OpenRLHF seq-mask-tis)": corrected("token", None, "geometric"),
    "DecoupledPPO(clip 0.2, behaviour-weight cap 2.2, mask action)": Case(decoupled(2.2), rollout_logprobs="rollout"),
    "DecoupledPPO(clip 0.2, cap 5.0 = old AReaL default)": Case(decoupled(5.0), rollout_logprobs="rollout"),
    "A-3PO(alpha=0.75, clip 0.2)": Case(
        A3PO(clip_low=0.2, clip_high=0.2, std="sample"), rollout_logprobs="rollout", old_logprobs="rollout", lag=3
    ),
    "M2PO(paper Alg.1 as in Trinity main; masked, /all tokens)": Case(M2PO(threshold=0.04, std="sample"), old_logprobs="new"),
    "M2PO(paper Alg.1, threshold 0.2)": Case(M2PO(threshold=0.2, std="sample"), old_logprobs="new"),
    # The authors' repository ends with one clip range for the batch; here its floors 0.3 and 0.5 are that range.
    "M2PO(authors' repo: batch-wide clip bounds with floors 0.3/0.5)": Case(grpo(0.3, 0.5)),
    # The range that BAPO ends with is tested below; with it, the loss is dual-clip PPO's.
    "BAPO(authors' repo yaml: target 1, low .6->.8, high 1.2->2.0, dual 3)": Case(grpo(0.2, 1.0), dual(3.0)),
    "DPPO-binary-tv(0.2, ratio to rollout)": dppo("tv", 0.2),
    "DPPO-binary-kl(0.05, ratio to rollout)": dppo("kl", 0.05),
    "prime-rl default (DPPO-TV 0.2 + 1e-3 * logratio^2, token-mean)": dppo("tv", 0.2, drift=1e-3, std="none"),
}
AREAL_M2PO = "M2PO(AReaL: sign-blind mask, here prox=new, then PPO-clip 0.2)"
BAPO_DEFAULT = BAPO(low=0.6, high=1.2, low_limit=0.8, high_limit=2.0, step=0.05, target=1.0, cap=3.0, std="sample")


def inputs_of(rewards: list[float], mask: Tensor | None = None, **changed: Tensor) -> AdvantageInputs:
    """One group."""
    count = len(rewards)
    mask = torch.ones(count, 3, dtype=torch.float64) if mask is None else mask
    zero = torch.zeros_like(mask)
    group = torch.zeros(count, dtype=torch.int64)
    tensors = {"penalties": zero, "mask": mask, "rollout_logprobs": zero, "old_logprobs": zero}
    tensors |= {"group": group, "turn_rewards": zero}
    tensors |= {"random_key": torch.linspace(0, 0.9, count).double(), **changed}
    tokens = TokenInputs(**{f.name: tensors[f.name] for f in fields(TokenInputs)})
    return AdvantageInputs(
        rewards=double(rewards),
        returns=double(rewards) - tokens.penalties.sum(1),
        group=tensors["group"],
        lengths=mask.sum(1).double(),
        shape=(count, mask.shape[1]),
        draw=lambda: tensors["random_key"],
        pad=lambda: tokens,
    )


def batch_of(case: Case, fixture: dict[str, object]) -> Batch:
    mask = double(fixture["mask"])
    count = len(mask)
    rollout_logprobs, old_logprobs = double(fixture[case.rollout_logprobs]), double(fixture[case.old_logprobs])
    random_key = double(case.random_key[:count])
    inputs = inputs_of(
        fixture["rewards"], mask, rollout_logprobs=rollout_logprobs, old_logprobs=old_logprobs, random_key=random_key
    )  # type: ignore[arg-type]
    advantages = case.objective.advantages(inputs)
    return Batch(
        token_ids=torch.ones(mask.shape, dtype=torch.int64),
        lengths=torch.full((count,), mask.shape[1]),
        mask=mask,
        rollout_logprobs=rollout_logprobs,
        old_logprobs=old_logprobs,
        reference=double(fixture.get("ref", fixture["old"])),
        advantages=(advantages if advantages.dim() == 2 else advantages[:, None]) * mask,
        weights=loss_weights(mask, case.objective.average, inputs.group, 4),
        group=inputs.group,
        lag=torch.full((count,), case.lag),
    )


def loss_and_gradient(objective: Objective, batch: Batch, policy: Tensor, with_terms: LossTerms) -> tuple[Tensor, Tensor]:
    policy = policy.clone().requires_grad_()
    output = total_loss(objective, with_terms, batch, PolicyOutputs(policy, torch.zeros_like(policy)))
    loss = (output.per_token * batch.weights).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_reference_values(name: str) -> None:
    case, golden = CASES[name], GOLDEN["cases"][name]
    fixture = GOLDEN["fixtures"][golden["fixture"]]
    loss, gradient = loss_and_gradient(
        case.objective, batch_of(case, fixture), double(fixture["new"]), terms(corrections=case.corrections)
    )
    torch.testing.assert_close(loss, double(golden["loss"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, double(golden["grad"]), atol=1e-6, rtol=0)


def test_every_reference_value_is_looked_at() -> None:
    assert CASES.keys() | {AREAL_M2PO} == GOLDEN["cases"].keys()


def test_areal_drops_tokens_whatever_their_sign_and_out_of_the_mean() -> None:
    """AReaL's reading of M2PO, put together from the same pieces: the mask is the paper's with every token judged."""
    golden, fixture = GOLDEN["cases"][AREAL_M2PO], GOLDEN["fixtures"]["base"]
    squares = (double(fixture["new"]) - double(fixture["old"])).square()
    kept = second_moment_mask(squares, torch.ones_like(squares, dtype=torch.bool), 0.04)
    assert kept.tolist() == [[bool(k) for k in row] for row in golden["metrics"]["keep"]]
    case = Case(grpo())
    loss, gradient = loss_and_gradient(
        case.objective, batch_of(case, fixture | {"mask": kept.double().tolist()}), double(fixture["new"]), terms()
    )
    torch.testing.assert_close(loss, double(golden["loss"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, double(golden["grad"]), atol=1e-6, rtol=0)


def test_bapo_finds_the_range_of_its_authors() -> None:
    golden = GOLDEN["cases"]["BAPO(authors' repo yaml: target 1, low .6->.8, high 1.2->2.0, dual 3)"]
    fixture = GOLDEN["fixtures"]["base"]
    ratio = (double(fixture["new"]) - double(fixture["old"])).exp()
    assert BAPO_DEFAULT.bounds(ratio, double(golden["advantages"])) == pytest.approx(golden["metrics"]["final_low_high"])
    case = Case(BAPO_DEFAULT, old_logprobs="new")
    _, gradient = loss_and_gradient(BAPO_DEFAULT, batch_of(case, fixture), double(fixture["new"]), terms())
    torch.testing.assert_close(gradient, double(golden["grad"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [n for n, c in GOLDEN["cases"].items() if "clip_mask_keep" in (c.get("metrics") or {})])
def test_clip_fraction_counts_the_tokens_whose_gradient_is_gone(name: str) -> None:
    case, golden = CASES[name], GOLDEN["cases"][name]
    fixture = GOLDEN["fixtures"][golden["fixture"]]
    output = case.objective.loss(batch_of(case, fixture), PolicyOutputs(double(fixture["new"]), double(fixture["new"])))
    expected = golden["metrics"]["pg_clipfrac"]
    if "actor/pg_clipfrac" in output.metrics:
        assert output.metrics["actor/pg_clipfrac"].value == pytest.approx(expected)
    else:
        assert expected == 0  # an objective without a clip reports none


def test_the_dual_clip_reports_its_own_share() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    scores = PolicyOutputs(double(fixture["new"]), torch.zeros(2, 3, dtype=torch.float64))
    metrics = total_loss(grpo(), terms(corrections=dual(3.0)), batch_of(Case(grpo()), fixture), scores).metrics
    assert metrics["actor/pg_clipfrac_lower"].value == pytest.approx(1 / 6)
    assert metrics["actor/pg_clipfrac"].value == pytest.approx(2 / 6)


@pytest.mark.parametrize(("kind", "weight", "cap", "mask"), [
    ("tis-token", "token", 2.0, "none"), ("mis-token(icepop)", "token", None, "token"),
    ("tis-sequence", "sequence", 2.0, "none"), ("mis-sequence", "sequence", None, "sequence"),
    ("geo-mask*token-tis", "token", 2.0, "geometric"),
])  # fmt: skip
def test_importance_corrections_weigh_as_the_reference_values_do(kind: str, weight: str, cap: float | None, mask: str) -> None:
    golden, fixture = GOLDEN["cases"][f"GRPO-clip + {kind}"], GOLDEN["fixtures"]["base"]
    case = corrected(weight, cap, mask)
    found = importance_weight(batch_of(case, fixture), case.corrections.importance)
    torch.testing.assert_close(found, double(golden["metrics"]["correction_weight"]))


def test_opsm_masks_a_bad_sequence_that_the_policy_left_behind_and_no_other() -> None:
    """Mean of anchor - policy: -0.2 for the good sequence, 0.3 for the bad one."""
    old_logprobs = double([[-1.0, -1.0], [-0.5, -0.5]])
    policy = double([[-0.8, -0.8], [-0.8, -0.8]])
    fixture = {"mask": [[1, 1], [1, 1]], "old": old_logprobs.tolist(), "rewards": [1.0, 0.0]}
    for delta, alive in ((0.1, [True, False]), (1.5, [True, True])):
        with_opsm = terms(corrections=replace(NO_CORRECTIONS, opsm_delta=delta))
        _, gradient = loss_and_gradient(REINFORCE(), batch_of(Case(REINFORCE()), fixture), policy, with_opsm)
        assert (gradient != 0).any(1).tolist() == alive


def test_advantages_equal_the_reference_values() -> None:
    golden = GOLDEN["advantages"]
    for rewards, prefix in ((golden["rewards_base"], ""), (golden["group4_rewards"], "group4_")):
        inputs = inputs_of(rewards)
        names = {
            "group4_mean_only" if prefix else "mean_only(REC/Dr.GRPO)": centered(inputs),
            "group4_grpo_ddof0" if prefix else "grpo_std_ddof0_eps1e-6(REC std_normalize)": standardized(inputs, "population"),
            "group4_grpo_ddof1" if prefix else "grpo_std_ddof1_eps1e-6": standardized(inputs, "sample"),
            f"{prefix}rloo": leave_one_out(inputs),
            f"{prefix}opmd_logavgexp_tau1": above_log_mean_exp(inputs, 1.0),
            f"{prefix}red_weight_A*w_T1": centered(inputs) * centered(inputs).exp(),
        }
        for name, values in names.items():
            torch.testing.assert_close(values, double(golden[name]), msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(AsymRE(shift=-0.1, tau=0.0).advantages(inputs_of([1, 0])), double(golden["asymre_shift-0.1"]))


def test_whitened_returns_equal_the_reference_values() -> None:
    golden = GOLDEN["advantages"]
    full, ragged = double([[1, 1, 1], [1, 1, 1]]), double([[1, 1, 1], [1, 1, 0]])
    plain = REINFORCEPP(clip_low=0.2, clip_high=0.2, group_baseline=False)
    based = REINFORCEPP(clip_low=0.2, clip_high=0.2, group_baseline=True)
    for objective, mask, name in (
        (plain, full, "reinforce++_whitened_tokens_base"),
        (plain, ragged, "reinforce++_whitened_tokens_ragged"),
        (based, ragged, "reinforce++baseline_tokens_ragged"),
    ):
        torch.testing.assert_close(objective.advantages(inputs_of([1.0, 0.0], mask)), double(golden[name]), atol=1e-7, rtol=0)


def test_a_token_pays_for_its_own_penalty_and_those_that_follow() -> None:
    inputs = inputs_of([1.0], double([[0, 1, 1, 1]]), penalties=double([[0, 0.1, 0.2, 0.4]]))
    torch.testing.assert_close(returns_to_go(inputs), double([[0, 0.3, 0.4, 0.6]]))
    torch.testing.assert_close(inputs.returns, double([0.3]))


def test_the_temperature_of_adaptive_red_weight_is_that_of_the_reference() -> None:
    golden = GOLDEN["advantages"]["adaptive_red_weight"]
    away, lengths = double(golden["advantages"]), double(golden["lengths"])
    temperature = balancing_temperature(away, lengths)
    assert temperature == pytest.approx(golden["temperature"])
    torch.testing.assert_close(away * (away / temperature).exp(), double(golden["weighted_advantages"]))
    assert balancing_temperature(away, lengths.flip(0)) == float("inf")


def test_the_overlong_punishment_is_dapos() -> None:
    golden = GOLDEN["theory"]["dapo_overlong(Lmax=20480,cache=4096)"]
    lengths = torch.tensor([int(length) for length in golden])
    assert overlong_penalty(lengths, 20480, 4096).tolist() == list(golden.values())
    assert overlong_penalty(lengths, 20480, 0).tolist() == [0.0] * len(lengths)


def test_two_groups_have_separate_advantages() -> None:
    inputs = inputs_of([1, 0, 0, 5, 5], group=torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(centered(inputs), double([2 / 3, -1 / 3, -1 / 3, 0, 0]))
    torch.testing.assert_close(leave_one_out(inputs), double([1, -0.5, -0.5, 0, 0]))


def test_credit_by_turn_compares_each_turn_with_the_same_turn_of_its_siblings() -> None:
    mask = double([[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]])
    rewards = double([[0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])  # at the last token of each turn
    found = by_turn(inputs_of([1.0, 2.0, 0.0], mask, turn_rewards=rewards))
    far = 1.5**0.5  # of 1, 2 and 0 from their mean 1, in standard deviations
    wanted = double([[0, 0, 0, -1], [far, 0, 1, 0], [-far, -far, 0, 0]])
    assert torch.allclose(found, wanted, atol=1e-5)
    more = inputs_of([1.0, 5.0, 0.0], mask, turn_rewards=rewards)  # the second was given 3 at its end
    assert torch.allclose(by_turn(more)[:, 0], (double([1, 5, 0]) - 2) / (14 / 3) ** 0.5, atol=1e-5)
    assert torch.equal(by_turn(inputs_of([1.0] * 3, mask)), torch.zeros_like(mask))


def test_rewards_that_are_equal_but_for_rounding_have_no_advantage() -> None:
    assert centered(inputs_of([0.1] * 3)).tolist() == [0.0, 0.0, 0.0]
    assert standardized(inputs_of([0.1] * 3), "sample").tolist() == [0.0, 0.0, 0.0]


ESTIMATORS = {"k1": "k1", "k2": "k2", "k3": "k3", "abs": "abs"} | {
    "k3_corrected": "corrected_k3(Trinity: ratio clamped to [0,2])",
    "k3_unbiased": "unbiased_k3(DeepSeek-V3.2/TRL: ratio not clamped)",
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_estimators_equal_the_reference_values(estimator: str) -> None:
    fixture, golden = GOLDEN["fixtures"]["base"], GOLDEN["kl"][ESTIMATORS[estimator]]
    policy = double(fixture["new"]).requires_grad_()
    per_token = kl(estimator, policy, double(fixture["ref"]), policy - double(fixture["old"]))  # type: ignore[arg-type]
    torch.testing.assert_close(per_token.detach(), double(golden["per_token"]))
    (gradient,) = torch.autograd.grad(per_token.mean(), policy)
    torch.testing.assert_close(gradient, double(golden["grad_of_token_mean"]))


def test_statistics_equal_the_reference_values() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    golden = GOLDEN["kl"]["off_policy_diagnostics(new vs old)"]
    scores = PolicyOutputs(double(fixture["new"]), double(fixture["new"]))
    metrics = total_loss(grpo(), terms(), batch_of(Case(grpo()), fixture), scores).metrics
    assert metrics["offpolicy/behavior_kl"].value == pytest.approx(golden["ppo_kl = mean(old-new)"])
    assert metrics["offpolicy/ess"].value == pytest.approx(golden["ESS_token = (sum r)^2/(n sum r^2)"])
    assert metrics["offpolicy/ratio_max"].value == pytest.approx(3.6692966676192444)
    assert metrics["actor/kl_k2"].value == pytest.approx(GOLDEN["kl"]["k2"]["token_mean"])
    unmeasured = total_loss(grpo(), terms(), replace(batch_of(Case(grpo()), fixture), reference=None), scores).metrics
    assert metrics.keys() - unmeasured.keys() == {"actor/kl_k1", "actor/kl_k2", "actor/kl_k3"}
    assert not any(name.startswith("offpolicy/") for name in total_loss(
        grpo(), terms(off_policy=False), batch_of(Case(grpo()), fixture), scores).metrics)  # fmt: skip


def test_terms_add_kl_and_subtract_entropy() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    batch = batch_of(Case(grpo()), fixture)
    scores = PolicyOutputs(double(fixture["new"]), torch.full((2, 3), 0.7, dtype=torch.float64))
    plain = (total_loss(grpo(), terms(), batch, scores).per_token * batch.weights).sum()
    full = total_loss(grpo(), terms(kl_coef=0.5, kl_estimator="k3", entropy_coef=0.1), batch, scores)
    expected = plain + 0.5 * GOLDEN["kl"]["k3"]["token_mean"] - 0.1 * 0.7
    torch.testing.assert_close((full.per_token * batch.weights).sum(), expected)
    assert full.metrics["actor/pg_loss"].value == pytest.approx(plain.item())


PREFERENCES = {
    "StepDPO/DPO beta=0.5 (7B script)": StepDPO(beta=0.5, label_smoothing=0.0),
    "StepDPO/DPO beta=0.4 (72B script)": StepDPO(beta=0.4, label_smoothing=0.0),
    "DPO beta=0.1 label_smoothing=0.1": DPO(beta=0.1, label_smoothing=0.1),
    "DPO beta=0.1": DPO(beta=0.1, label_smoothing=0.0),
}


def pairs_of(objective: Objective) -> tuple[Batch, Tensor]:
    """The two pairs of the reference values as a batch, chosen before rejected, and the policy's log-probabilities."""
    inputs = GOLDEN["preference"]["inputs"]
    rows = [(side, i) for i in range(2) for side in ("chosen", "rejected")]
    policy = double([inputs[f"{side}_new"][i] for side, i in rows])
    group, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, 3, dtype=torch.float64)
    signs = objective.advantages(inputs_of([1, 0, 1, 0], mask, group=group))
    zero = torch.zeros_like(mask)
    return Batch(
        token_ids=zero.long(), lengths=torch.full((4,), 3), mask=mask, rollout_logprobs=zero, old_logprobs=zero,
        reference=double([inputs[f"{side}_ref"][i] for side, i in rows]), advantages=signs[:, None] * mask,
        weights=loss_weights(mask, objective.average, group, 4), group=group, lag=torch.zeros(4).long(),
    ), policy  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_equal_the_reference_values(name: str) -> None:
    golden, objective = GOLDEN["preference"][name], PREFERENCES[name]
    batch, policy = pairs_of(objective)
    loss, gradient = loss_and_gradient(objective, batch, policy, terms(off_policy=False))
    torch.testing.assert_close(loss, double(golden["loss"]), atol=1e-6, rtol=0)
    expected = [golden["grad_chosen"][0], golden["grad_rejected"][0], golden["grad_chosen"][1], golden["grad_rejected"][1]]
    torch.testing.assert_close(gradient, double(expected), atol=1e-6, rtol=0)
    metrics = objective.loss(batch, PolicyOutputs(policy, policy)).metrics
    assert metrics["preference/margin"].value == pytest.approx(golden["rewards/margins(mean)"])
    assert metrics["preference/accuracy"].value == pytest.approx(golden["rewards/accuracies"])
    assert metrics["preference/chosen"].value == pytest.approx(sum(golden["rewards/chosen"]) / 2)
    assert metrics["preference/rejected"].value == pytest.approx(sum(golden["rewards/rejected"]) / 2)


def test_the_loss_of_one_logit_for_the_whole_micro_batch_is_not_ours() -> None:
    """Trinity-RFT 0.6.0 sums a micro-batch into one logit; the reference keeps its value so that nobody repeats it."""
    wrong = GOLDEN["preference"]["Trinity-0.6.0 DPOLossFn (one logit for the whole micro-batch) beta=0.1"]
    batch, policy = pairs_of(DPO(beta=0.1, label_smoothing=0.0))
    loss, _ = loss_and_gradient(DPO(beta=0.1, label_smoothing=0.0), batch, policy, terms(off_policy=False))
    assert abs(loss.item() - wrong["loss"]) > 5e-3


def test_a_preference_between_equals_is_refused() -> None:
    with pytest.raises(
        RloptError, match=r"group 0 has rewards \[1.0, 1.0\]: a preference needs two samples, one better than the other"
    ):
        DPO(beta=0.1, label_smoothing=0.0).advantages(inputs_of([1.0, 1.0]))


def test_an_input_that_is_not_finite_is_refused_by_name_and_place() -> None:
    fixture = GOLDEN["fixtures"]["base"]
    batch, policy = batch_of(Case(grpo()), fixture), double(fixture["new"])
    entropy = torch.zeros_like(policy)
    for name in ("rollout_logprobs", "old_logprobs", "reference", "advantages"):
        broken = replace(batch, **{name: getattr(batch, name).clone().index_fill_(1, torch.tensor([2]), torch.inf)})
        with pytest.raises(RloptError, match=rf"Batch.{name} is -?inf at sequence 0, token 2: not finite"):
            total_loss(grpo(), terms(), broken, PolicyOutputs(policy, entropy))
    with pytest.raises(RloptError, match=r"Scores.logprobs is nan at sequence 0, token 0"):
        total_loss(grpo(), terms(), batch, PolicyOutputs(policy * torch.nan, entropy))


def test_a_users_function_replaces_the_advantages() -> None:
    mine = WithAdvantages(REINFORCE(), lambda inputs: inputs.returns * 2)
    assert mine.advantages(inputs_of([1.0, 0.5])).tolist() == [2.0, 1.0]
    assert mine.average == "token_mean"
    with pytest.raises(RloptError, match=r"algo.advantages returned \(1,\) for 2 samples"):
        WithAdvantages(REINFORCE(), lambda inputs: inputs.returns[:1]).advantages(inputs_of([1.0, 0.5]))


def test_corrections_refuse_bounds_that_mean_nothing() -> None:
    with pytest.raises(RloptError, match="algo.dual_clip=1.0: must be above 1"):
        dual(1.0)
    with pytest.raises(RloptError, match="algo.opsm_delta=0.0"):
        replace(NO_CORRECTIONS, opsm_delta=0.0)
    with pytest.raises(RloptError, match="algo.correction.cap=2.0"):
        replace(NO_CORRECTIONS.importance, cap=2.0)
    with pytest.raises(RloptError, match="algo.correction.low=3.0"):
        replace(NO_CORRECTIONS.importance, mask="token", low=3.0)


def test_red_drop_keeps_the_advantage_of_a_sample_at_the_groups_mean() -> None:
    """Mean 1; three bad and two good, so one bad sample, the first in the lottery, is dropped; the others have mean 1.125."""
    found = REDDrop().advantages(inputs_of([2.5, 1.0, 0.5, 0.5, 0.5], random_key=double([0.0, 0.0, 0.1, 0.8, 0.9])))
    torch.testing.assert_close(found, double([1.375, -0.125, 0.0, -0.625, -0.625]))


def test_far_apart_groups_do_not_spoil_each_others_log_mean_exp() -> None:
    inputs = inputs_of([-1000.0, -999.0, 0.0, 1.0], group=torch.tensor([0, 0, 1, 1]))
    far, near = above_log_mean_exp(inputs, 1.0).split(2)
    torch.testing.assert_close(far, near)


def test_dual_clip_bounds_the_ratio_that_the_objective_multiplies_by() -> None:
    """GSPO's ratio is the sequence's: one wild token in a sequence at 1 is not bounded, and never raised."""
    gspo = GSPO(clip_low=0.2, clip_high=0.2, std="sample")
    old_logprobs = double([[-1.0, -1.0], [-1.0, -1.0]])
    policy = double([[-1.0, -1.0], [0.5, -2.5]])
    batch = batch_of(Case(gspo), {"mask": [[1, 1], [1, 1]], "old": old_logprobs.tolist(), "rewards": [1.0, 0.0]})
    plain, bounded = (loss_and_gradient(gspo, batch, policy, terms(corrections=c)) for c in (NO_CORRECTIONS, dual(3.0)))
    torch.testing.assert_close(plain, bounded)


def test_kl_and_opsm_measure_the_distance_to_the_policy_that_sampled_whatever_the_anchor() -> None:
    policy, rollout_logprobs = double([[-1.0, -1.0], [-2.0, -2.0]]), double([[-1.0, -1.0], [-1.0, -1.0]])
    fixture = {"mask": [[1, 1], [1, 1]], "old": rollout_logprobs.tolist(), "new": policy.tolist(), "rewards": [1.0, 0.0]}
    for old_logprobs in ("old", "new"):
        batch = batch_of(Case(REINFORCE(), old_logprobs=old_logprobs), fixture)
        masked = terms(corrections=replace(NO_CORRECTIONS, opsm_delta=0.5))
        _, gradient = loss_and_gradient(REINFORCE(), batch, policy, masked)
        assert (gradient != 0).any(1).tolist() == [True, False]


def test_a_sibling_without_sampled_tokens_does_not_count_in_what_a_group_expects() -> None:
    mask = [[1, 1], [1, 1], [0, 0]]
    fixture = {"mask": mask, "old": [[-1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]], "rewards": [1.0, 0.0, 0.0]}
    gepo = GEPO(clip=0.2, std="sample")
    output = gepo.loss(batch_of(Case(gepo), fixture), PolicyOutputs(double(fixture["old"]), double(fixture["old"])))
    assert output.metrics["actor/pg_clipfrac"].value == 0  # on policy every weight is 1


def test_aspo_has_a_gradient_where_the_policy_has_all_but_given_up_a_good_token() -> None:
    aspo = ASPO(clip_low=0.2, clip_high=0.2, cap=3.0, std="sample")
    batch = batch_of(Case(aspo), {"mask": [[1.0], [1.0]], "old": [[-1.0], [-1.0]], "rewards": [1.0, 0.0]})
    policy = torch.tensor([[-95.0], [-1.0]], requires_grad=True)
    small = replace(
        batch, **{n: getattr(batch, n).float() for n in ("mask", "rollout_logprobs", "old_logprobs", "advantages", "weights")}
    )
    (gradient,) = torch.autograd.grad(aspo.loss(small, PolicyOutputs(policy, policy)).per_token.sum(), policy)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: replace(BAPO_DEFAULT, step=0.0), "algo.step=0.0: must be above 0"),
    (lambda: REDWeight(temperature=0.0), "algo.temperature=0.0: must be above 0"),
    (lambda: grpo(clip_low=-5.0), "algo.clip_low=-5.0: is how far below 1"),
    (lambda: DPO(beta=-1.0, label_smoothing=0.0), "algo.beta=-1.0: must be above 0"),
    (lambda: DPO(beta=0.1, label_smoothing=2.0), "algo.label_smoothing=2.0: must be at least 0 and below 0.5"),
    (lambda: PMD(tau=0.0), "algo.tau=0.0: must be above 0"),
    (lambda: RLOO(clip_low=0.2, clip_high=None, average="token_mean"), "algo.clip_low=0.2: set both"),
])  # fmt: skip
def test_a_field_out_of_its_range_is_refused(make: object, message: str) -> None:
    with pytest.raises(RloptError, match=message):
        make()  # type: ignore[operator]
