"""rlopt's losses beside TRL's: TRL's own code on the same float64 tensors, loss and gradient to 1e-9.

TRL's methods run unbound, on small stand-ins for the trainer that hold what the methods read and hand out the
log-probabilities of this file. Differences that remain are named where they show, in lines that begin with "TRL".
Written against TRL 1.16.0; it is a dependency of this file alone.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from builders import group, loss_weights, terms
from torch import Tensor
from torch.nn.functional import pad

from rlopt.core.batches import Batch, PolicyOutputs
from rlopt.data.collate import tabulate
from rlopt.objectives.advantages import EPSILON, centered, standardized
from rlopt.objectives.cispo import CISPO
from rlopt.objectives.core import LossTerms, Objective, no_loss_terms, total_loss
from rlopt.objectives.corrections import NO_CORRECTIONS
from rlopt.objectives.credit import advantage_inputs
from rlopt.objectives.dapo import DAPO
from rlopt.objectives.dpo import DPO
from rlopt.objectives.dr_grpo import DrGRPO
from rlopt.objectives.grpo import GRPO
from rlopt.objectives.gspo import GSPO
from rlopt.objectives.luspo import LUSPO
from rlopt.objectives.sapo import SAPO
from rlopt.objectives.vespo import VESPO

pytest.importorskip("trl", reason="TRL is not installed; the lock file has it, for this file alone")

PROMPT = 3  # tokens of every prompt
LIMIT = 14  # of the longest response that a run would allow
TRL_EPSILON = 1e-4  # beside the standard deviation
PLAIN = replace(no_loss_terms(LIMIT), kl_estimator="k3", off_policy=True)


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    """TRL's trainers. vLLM is hidden from their import: TRL would load it for seconds, and warn that 0.31 is its newest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
    return SimpleNamespace(GRPO=GRPOTrainer, DPO=DPOTrainer)


@dataclass(frozen=True)
class Responses:
    """What both libraries are given: `[B, C]` tensors of responses, `[B]` of their credit and their siblings.

    Where the mask is 0 (padding, and tokens of a tool inside a response) the log-probabilities are any: they must not count.
    """

    policy: Tensor
    old_logprobs: Tensor
    reference: Tensor
    present: Tensor
    action_mask: Tensor
    advantages: Tensor
    group: Tensor

    @property
    def mask(self) -> Tensor:
        return self.present * self.action_mask

    def rows(self, start: int, end: int) -> "Responses":
        return Responses(**{name: value[start:end] for name, value in vars(self).items()})


def responses(seed: int = 0) -> Responses:
    """Eight responses of 2 to 12 tokens; every sequence ratio is far inside or far outside a clip of 0.2, whatever the seed."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([12, 5, 2, 9, 7, 12, 3, 10])
    shape = len(lengths), 12

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=draw, dtype=torch.float64)

    present = (torch.arange(12) < lengths[:, None]).long()
    action_mask = (uniform(0, 1, *shape) < 0.8).long()
    action_mask[:, 0] = 1
    mask = present * action_mask
    old_logprobs, noise = uniform(-3.0, -0.1, *shape), uniform(-0.8, 0.8, *shape)
    sequence_drift = torch.tensor([0.3, -0.3, 0.02, 0.35, -0.3, -0.35, 0.01, 0.3], dtype=torch.float64)
    drift = noise - ((noise * mask).sum(1) / mask.sum(1) - sequence_drift)[:, None]
    return Responses(
        policy=(old_logprobs + drift).requires_grad_(),
        old_logprobs=old_logprobs,
        reference=old_logprobs + uniform(-0.5, 0.5, *shape),
        present=present,
        action_mask=action_mask,
        advantages=torch.tensor([1.2, -0.7, 0.4, -1.5, 0.9, -0.2, -0.6, 0.5], dtype=torch.float64),
        group=torch.arange(8) // 2,
    )


def ours(objective: Objective, given: Responses, terms: LossTerms = PLAIN) -> Tensor:
    """The loss that rlopt trains on, prompts before the responses."""
    mask = pad(given.mask.double(), (PROMPT, 0))
    old_logprobs = pad(given.old_logprobs, (PROMPT, 0))
    policy = pad(given.policy, (PROMPT, 0))
    batch = Batch(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64),
        lengths=PROMPT + given.present.sum(1),
        mask=mask,
        rollout_logprobs=old_logprobs,
        old_logprobs=old_logprobs,
        reference=pad(given.reference, (PROMPT, 0)),
        advantages=given.advantages[:, None] * mask,
        weights=loss_weights(mask, objective.average, given.group, terms.limit),
        group=given.group,
        lag=torch.zeros(len(mask), dtype=torch.int64),
    )
    return (
        total_loss(objective, terms, batch, PolicyOutputs(policy, torch.zeros_like(policy))).per_token * batch.weights
    ).sum()


class OneProcess:
    """What TRL asks of `accelerate.Accelerator`, where there is one process and nothing to gather."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather_for_metrics(self, tensor: Tensor) -> Tensor:
        return tensor

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class GRPOSelf:
    """The `self` of `GRPOTrainer._compute_loss`: log-probabilities without a model, settings as TRL has them."""

    accelerator = OneProcess()
    model = SimpleNamespace(training=True)
    aux_loss_enabled = False
    top_entropy_quantile = 1.0
    off_policy_mask_threshold = None
    use_vllm = vllm_importance_sampling_correction = False
    loss_type = "dapo"
    importance_sampling_level = "token"
    beta = 0.0
    epsilon_low = 0.2
    epsilon_high = 0.2
    max_completion_length = LIMIT
    current_gradient_accumulation_steps = 1
    _entropy_bonus_enabled = False

    def __init__(self, trainer: type, policy: Tensor, settings: dict[str, object]) -> None:
        self.policy = policy
        self.get_off_policy_mask = trainer.get_off_policy_mask  # type: ignore[attr-defined]  # TRL's own
        self.get_gamma_weights = trainer.get_gamma_weights  # type: ignore[attr-defined]
        self.args = SimpleNamespace(
            delta=None,
            use_bias_correction_kl=True,
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        )
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
        for name, value in settings.items():
            holder = self if hasattr(self, name) else self.args
            assert hasattr(holder, name), f"TRL has no {name}"
            setattr(holder, name, value)

    def _get_per_token_logps_and_entropies(self, *_: object, **__: object) -> tuple[Tensor, Tensor, None]:
        return self.policy, torch.zeros_like(self.policy), None


def theirs(trl: SimpleNamespace, given: Responses, tokens: int | None = None, **settings: object) -> Tensor:
    """TRL's loss of the same responses; `tokens` of the whole update, where `given` is a part of it."""
    prompt = torch.ones(len(given.policy), PROMPT, dtype=torch.int64)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.zeros_like(given.present),
        "completion_mask": given.present,
        "tool_mask": given.action_mask,
        "advantages": given.advantages,
        "old_per_token_logps": given.old_logprobs,
        "ref_per_token_logps": given.reference,
        "num_items_in_batch": given.mask.sum() if tokens is None else torch.tensor(tokens),
    }
    return trl.GRPO._compute_loss(GRPOSelf(trl.GRPO, given.policy, settings), None, inputs)


def assert_one_loss_and_gradient(mine: Tensor, other: Tensor, policy: Tensor) -> None:
    (my_gradient,) = torch.autograd.grad(mine, policy)
    (other_gradient,) = torch.autograd.grad(other, policy)
    assert my_gradient.abs().max() > 1e-3, "nothing was compared"
    torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)
    torch.testing.assert_close(my_gradient, other_gradient, atol=1e-9, rtol=0)


@dataclass(frozen=True)
class Case:
    """An objective of rlopt, TRL's settings that mean the same, and the terms beside the loss where there are any."""

    objective: Objective
    settings: dict[str, object]
    terms: LossTerms = field(default=PLAIN)


TOKEN_GRPO = GRPO(clip_low=0.2, clip_high=0.2, std="sample", average="token_mean")
SEQUENCE_GRPO = GRPO(clip_low=0.2, clip_high=0.2, std="sample", average="sequence_mean")
DR_GRPO = DrGRPO(clip_low=0.2, clip_high=0.2, average="constant")
GSPO_NARROW = GSPO(clip_low=3e-4, clip_high=4e-4, std="sample")
SAPO_EXACT = SAPO(tau_positive=1.0, tau_negative=2.0, std="sample", gate_only=False)
DUAL_CLIP = replace(NO_CORRECTIONS, dual_clip=1.8)
OPSM = replace(NO_CORRECTIONS, opsm_delta=0.1)
SEQUENCE = {"importance_sampling_level": "sequence"}

CASES = {
    # TRL's bnpo and grpo are means over a micro-batch, ours over the update; see the test of micro-batches below.
    "GRPO, token mean": Case(TOKEN_GRPO, {"loss_type": "bnpo"}),
    "GRPO, token mean as dapo": Case(TOKEN_GRPO, {"loss_type": "dapo"}),
    "GRPO, sequence mean": Case(SEQUENCE_GRPO, {"loss_type": "grpo"}),
    # TRL's dapo is the average alone; the clip of 0.28 is a setting of its own.
    "DAPO": Case(DAPO(clip_low=0.2, clip_high=0.28, std="sample"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    # TRL's dr_grpo still divides by the standard deviation unless scale_rewards is "none"; ours never does.
    "Dr. GRPO": Case(DR_GRPO, {"loss_type": "dr_grpo"}),
    # TRL spells GSPO as loss_type grpo with sequence-level ratios.
    "GSPO": Case(GSPO_NARROW, {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, **SEQUENCE}),
    "GSPO, wide clip": Case(GSPO(clip_low=0.2, clip_high=0.2, std="sample"), {"loss_type": "grpo", **SEQUENCE}),
    "LUSPO": Case(LUSPO(clip_low=0.2, clip_high=0.2, std="sample"), {"loss_type": "luspo", **SEQUENCE}),
    # TRL's epsilon_high is the bound itself for cispo, ours an offset from 1; TRL has no lower bound, our clip_low=1.
    "CISPO": Case(CISPO(clip_low=1.0, clip_high=0.28, std="sample"), {"loss_type": "cispo", "epsilon_high": 1.28}),
    # TRL holds the temperatures in float32, where the paper's 1.05 is 4e-8 off; powers of two are exact.
    "SAPO": Case(SAPO_EXACT, {"loss_type": "sapo", "sapo_temperature_neg": 2.0}),
    "VESPO": Case(
        VESPO(k_positive=2.0, lambda_positive=3.0, k_negative=3.0, lambda_negative=2.0, std="sample"),
        {"loss_type": "vespo"},
    ),
    # TRL's delta bounds every ratio and our dual_clip those with a negative advantage: one thing while delta is above the clip.
    "dual clip": Case(TOKEN_GRPO, {"loss_type": "bnpo", "delta": 1.8}, replace(PLAIN, corrections=DUAL_CLIP)),
    "off-policy sequence mask": Case(
        SEQUENCE_GRPO, {"loss_type": "grpo", "off_policy_mask_threshold": 0.1}, replace(PLAIN, corrections=OPSM)
    ),
    # TRL multiplies k3 by the ratio unless told not to; with sequence-level ratios by the sequence's, ours by the token's.
    "k3": Case(TOKEN_GRPO, {"loss_type": "bnpo", "beta": 0.04, "use_bias_correction_kl": False}, replace(PLAIN, kl_coef=0.04)),
    "k3 unbiased": Case(
        SEQUENCE_GRPO,
        {"loss_type": "grpo", "beta": 0.04},
        replace(PLAIN, kl_coef=0.04, kl_estimator="k3_unbiased"),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_are_those_of_trl(trl: SimpleNamespace, name: str, seed: int) -> None:
    case, given = CASES[name], responses(seed)
    mine = ours(case.objective, given, case.terms)
    assert_one_loss_and_gradient(mine, theirs(trl, given, **case.settings), given.policy)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_responses_lie_on_both_sides_of_every_clip_with_advantages_of_both_signs(seed: int) -> None:
    given = responses(seed)
    log_ratio = (given.policy - given.old_logprobs).detach()
    whole = (log_ratio * given.mask).sum(1) / given.mask.sum(1)
    for ratio, mask in ((log_ratio.exp(), given.mask), (whole.exp()[:, None], torch.ones(8, 1))):
        side = torch.where(ratio < 0.8, -1, torch.where(ratio > 1.28, 1, 0))
        sign = given.advantages.sign().int()[:, None].expand_as(side)
        seen = set(zip(sign[mask > 0].tolist(), side[mask > 0].tolist(), strict=True))
        assert seen == {(a, b) for a in (-1, 1) for b in (-1, 0, 1)}


@pytest.mark.parametrize("name", ["GRPO, token mean as dapo", "DAPO", "CISPO", "VESPO"])
def test_trl_in_two_micro_batches_is_our_whole_update_where_it_divides_by_all_tokens(trl: SimpleNamespace, name: str) -> None:
    """TRL's dapo, cispo and vespo divide by the tokens of all micro-batches, as all our averages do."""
    case, given = CASES[name], responses()
    settings = {**case.settings, "current_gradient_accumulation_steps": 2, "steps_per_generation": 2}
    tokens = int(given.mask.sum())
    other = theirs(trl, given.rows(0, 3), tokens, **settings) + theirs(trl, given.rows(3, 8), tokens, **settings)
    assert_one_loss_and_gradient(ours(case.objective, given, case.terms), other, given.policy)


def test_trl_in_two_micro_batches_departs_from_the_whole_where_it_averages_each_alone(trl: SimpleNamespace) -> None:
    """TRL's bnpo averages over the tokens of each micro-batch, then over micro-batches: the split changes its gradient."""
    given = responses()
    settings = {"loss_type": "bnpo", "current_gradient_accumulation_steps": 2}
    other = theirs(trl, given.rows(0, 3), **settings) + theirs(trl, given.rows(3, 8), **settings)
    assert (ours(TOKEN_GRPO, given) - other).abs() > 1e-3


@pytest.mark.parametrize("name", ["GRPO, sequence mean", "Dr. GRPO", "GSPO", "SAPO", "LUSPO"])
def test_a_response_without_a_sampled_token_counts_for_trl_and_not_for_us(trl: SimpleNamespace, name: str) -> None:
    """TRL divides by all sequences, ours by those that have a token: with 2 of 8 masked, TRL's loss is 6/8 of ours."""
    case, given = CASES[name], responses()
    action_mask = given.action_mask.clone()
    action_mask[[2, 5]] = 0
    given = replace(given, action_mask=action_mask)
    mine = ours(case.objective, given, case.terms)
    assert_one_loss_and_gradient(mine * 6 / 8, theirs(trl, given, **case.settings), given.policy)


class RewardedSelf:
    """The `self` of `GRPOTrainer._generate_and_score_completions`, whose completions and rewards are given."""

    accelerator = OneProcess()
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    args = SimpleNamespace(
        per_device_train_batch_size=8, gradient_checkpointing_kwargs=None, steps_per_generation=1, gradient_accumulation_steps=1
    )
    _tokenizer = SimpleNamespace(pad_token_id=0)
    environment_factories = tools = environments = pad_to_multiple_of = None
    mask_truncated_completions = use_vllm = log_multimodal = False
    num_iterations = 1
    beta = 0.0
    reward_funcs = reward_func_names = ("given",)
    reward_weights = torch.ones(1, dtype=torch.float64)
    multi_objective_aggregation = "sum_then_normalize"

    def __init__(self, rewards: Tensor, num_generations: int, scale_rewards: str) -> None:
        self.rewards = rewards
        self.num_generations = num_generations
        self.scale_rewards = scale_rewards
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
        self._logs = {"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": {}}
        self._pending_extra_logs: dict[str, list[object]] = {}
        self._pending_metrics: dict[str, list[float]] = {}

    def _generate(self, prompts: list[str]) -> tuple[object, ...]:
        ids = [[1, 2] for _ in prompts]
        return ids, ids, None, ["" for _ in prompts], None, {}, None, None

    def _calculate_rewards(self, *_: object) -> Tensor:
        return self.rewards[:, None]


def trl_advantages(trl: SimpleNamespace, rewards: Tensor, scale_rewards: str) -> Tensor:
    trainer = RewardedSelf(rewards.flatten(), rewards.shape[1], scale_rewards)
    return trl.GRPO._generate_and_score_completions(trainer, [{"prompt": "?"} for _ in trainer.rewards])["advantages"]


def test_advantages_are_those_of_trl_up_to_its_epsilon(trl: SimpleNamespace) -> None:
    """TRL adds 1e-4 to the sample standard deviation, ours 1e-6. A group of equals gets 0 from both.

    TRL computes G / (G - 1) in float32; groups of five, because 5 / 4 is exact there.
    """
    rewards = torch.tensor([[1, 0, 0, 0.5, 1], [0.3, 0.3, 0.3, 0.3, 0.3], [-2, 3, 0.1, 0.7, 0]], dtype=torch.float64)
    groups = [group(f"p{number}", tuple(row)) for number, row in enumerate(rewards.tolist())]
    outcomes = advantage_inputs(tabulate(groups, 1), None, None, terms())
    spread = rewards.std(1).repeat_interleave(5)
    scaled = standardized(outcomes, "sample") * (spread + EPSILON) / (spread + TRL_EPSILON)
    torch.testing.assert_close(scaled, trl_advantages(trl, rewards, "group"), atol=1e-9, rtol=0)
    torch.testing.assert_close(centered(outcomes), trl_advantages(trl, rewards, "none"), atol=1e-9, rtol=0)


class PreferenceModel(torch.nn.Module):
    """A model as DPOTrainer calls it, with TRL's fused head: the log-probability of every label, 0 where there is none."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = logprobs

    def forward(self, labels: Tensor, **_: object) -> SimpleNamespace:
        said = self.logprobs[:, 1:].masked_fill(labels[:, 1:] == -100, 0)
        nothing = torch.zeros_like(said)
        return SimpleNamespace(log_probs=said, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), aux_loss=None)


class DPOSelf:
    """The `self` of `DPOTrainer._compute_loss`."""

    accelerator = OneProcess()
    args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    aux_loss_enabled = precompute_ref_logps = use_weighting = False
    ld_alpha = None
    f_divergence_type = "reverse_kl"
    loss_weights = (1.0,)
    _total_train_tokens = 0
    _tp_size = 1

    def __init__(self, policy: Tensor, reference: Tensor, beta: float, loss_type: str, label_smoothing: float) -> None:
        self.model = PreferenceModel(policy)
        self.ref_model = PreferenceModel(reference)
        self.beta = beta
        self.loss_types = (loss_type,)
        self.label_smoothing = label_smoothing
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}


def preferences() -> Responses:
    """Four pairs; in the second and the last the rejected response comes first."""
    signs = torch.tensor([1, -1, -1, 1, 1, -1, -1, 1], dtype=torch.float64)
    return replace(responses(), advantages=signs)


def their_dpo(trl: SimpleNamespace, given: Responses, **settings: object) -> Tensor:
    """TRL's loss of pairs: first all that were chosen, then all that were rejected, in the same order."""
    order = torch.cat([(given.advantages > 0).nonzero()[:, 0], (given.advantages < 0).nonzero()[:, 0]])
    mask = pad(given.mask, (PROMPT, 0))[order]
    trainer = DPOSelf(pad(given.policy, (PROMPT, 0))[order], pad(given.reference, (PROMPT, 0))[order], **settings)
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return trl.DPO._compute_loss(trainer, trainer.model, inputs, return_outputs=False)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_is_that_of_trl(trl: SimpleNamespace, beta: float) -> None:
    """TRL wants chosen and rejected in two halves, ours side by side in any order; TRL's sigmoid ignores label_smoothing."""
    given = preferences()
    mine = ours(DPO(beta=beta, label_smoothing=0.0), given)
    other = their_dpo(trl, given, beta=beta, loss_type="sigmoid", label_smoothing=0.1)
    assert_one_loss_and_gradient(mine, other, given.policy)


def test_label_smoothing_is_that_of_trl_where_trl_still_has_it(trl: SimpleNamespace) -> None:
    """TRL keeps cDPO's smoothing in its `aot` losses alone, over sorted margins; of one pair there is nothing to sort.

    TRL's `robust` is another loss: it subtracts the flipped term and divides by `1 - 2 label_smoothing`.
    """
    given = preferences()
    pairs = [given.rows(start, start + 2) for start in range(0, 8, 2)]
    losses = [their_dpo(trl, pair, beta=0.5, loss_type="aot", label_smoothing=0.1) for pair in pairs]
    assert_one_loss_and_gradient(ours(DPO(beta=0.5, label_smoothing=0.1), given), sum(losses) / 4, given.policy)
