"""What an objective is, and the loss that is trained on: the objective's, corrected, with KL and entropy beside it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlopt.core.batches import AdvantageInputs, Average, Batch, LossOutput, PolicyOutputs, Unit
from rlopt.core.errors import RloptError
from rlopt.core.reduce import Ess, Max, Metric, Sum, masked_mean, number
from rlopt.core.shapes import Mask, SequenceOrTokens, Tokens
from rlopt.objectives.corrections import NO_CORRECTIONS, Corrections
from rlopt.objectives.divergence import KLEstimator, kl
from rlopt.objectives.ratios import one_side, ppo_clip

__all__ = [
    "AdvantageInputs",
    "Average",
    "Batch",
    "LossOutput",
    "LossTerms",
    "Objective",
    "PolicyOutputs",
    "Traits",
    "WithAdvantages",
    "clip_fraction",
    "clipped_surrogate",
    "masked_mean",
    "merge",
    "no_loss_terms",
    "total_loss",
]


EARLIER = {"Outcomes": AdvantageInputs, "Scores": PolicyOutputs}
"""Earlier names of records, which objectives written for the release before import from here."""


def __getattr__(name: str) -> type:
    if name in EARLIER:
        warnings.warn(f"{name} is now {EARLIER[name].__name__}", FutureWarning, stacklevel=2)
        return EARLIER[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")


@dataclass(frozen=True)
class Traits:
    """What an objective needs, and what it claims. The conformance kit tests the claims.

    Attributes:
        rows: what it learns from: groups of samples, preference pairs (of whole answers or of steps), or answers to imitate.
        reads: the log-probabilities of the past that it needs: `nothing`; `anchor`, the old ones (`algo.old_logprobs`);
            `behavior`, those of the policy that sampled, whatever the old ones are; or `proximal`, those of the policy at the
            start of the step and of the one that sampled. Objectives that read `behavior` or `proximal` weight by them
            themselves: importance corrections are refused.
        surrogate: its loss is `-A` times a ratio, or something else.
        clips_in_credit: it clips by setting advantages to 0, once a step; several updates and `algo.advantages` are refused.
        unit: what must stay in one micro-batch: a sequence, or a group with all its siblings.
        on_policy_identity: where policy, old policy and sampling policy agree, the gradient is `-advantages * weights`.
        equal_rewards_no_credit: samples of one prompt that all have one reward get advantage 0.
    """

    rows: Literal["groups", "pairs", "step_pairs", "answers"] = "groups"
    reads: Literal["nothing", "anchor", "behavior", "proximal"] = "nothing"
    surrogate: Literal["ratio", "other"] = "other"
    clips_in_credit: bool = False
    unit: Unit = "sequence"
    on_policy_identity: bool = True
    equal_rewards_no_credit: bool = True


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose fields are the keys of its YAML."""

    @property
    def traits(self) -> Traits: ...

    @property
    def average(self) -> Average:
        """How its per-token losses become one number; a class variable or a field."""
        ...

    def advantages(self, inputs: AdvantageInputs) -> SequenceOrTokens:
        """Advantages of all samples of a step: `[B]`, or `[B, T]` where tokens differ; float64."""
        ...

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        """The policy loss of every token `[B, T]`, minimized, before averaging; metrics by name."""
        ...


@dataclass(frozen=True)
class WithAdvantages:
    """`objective` with another function in place of its advantages (`algo.advantages`). It makes no claims."""

    objective: Objective
    credit: Callable[[AdvantageInputs], Tensor]

    @property
    def traits(self) -> Traits:
        return replace(self.objective.traits, on_policy_identity=False, equal_rewards_no_credit=False)

    @property
    def average(self) -> Average:
        return self.objective.average

    def advantages(self, inputs: AdvantageInputs) -> SequenceOrTokens:
        credit = self.credit(inputs)
        wanted = (inputs.shape[:1], inputs.shape)
        if not isinstance(credit, Tensor) or credit.shape not in wanted:
            shape = tuple(credit.shape) if isinstance(credit, Tensor) else type(credit).__name__
            raise RloptError(f"algo.advantages returned {shape} for {len(inputs.rewards)} samples; want [B] or [B, T]")
        return credit

    def loss(self, batch: Batch, scores: PolicyOutputs) -> LossOutput:
        return self.objective.loss(batch, scores)


@dataclass(frozen=True)
class LossTerms:
    """What composes with every objective: corrections of its loss, and terms added to it token by token.

    Attributes:
        kl_coef: weight of KL(policy, reference); 0 only measures it, where there is a reference.
        kl_place: added to the loss, or taken from the reward.
        entropy_coef: weight of the entropy bonus.
        overlong_buffer: last share of `limit` in which the reward falls to -1 (DAPO's soft overlong punishment); 0: none.
        overlong_filter: truncated samples are judged with their siblings but not learned from.
        limit: response tokens at most.
        off_policy: the data has behavior log-probabilities, so log how far from them the policy is.
    """

    kl_coef: float
    kl_estimator: KLEstimator
    kl_place: Literal["loss", "reward"]
    entropy_coef: float
    corrections: Corrections
    overlong_buffer: float
    overlong_filter: bool
    limit: int
    off_policy: bool


def no_loss_terms(limit: int) -> LossTerms:
    """Nothing added, nothing corrected; `limit` response tokens at most."""
    return LossTerms(
        kl_coef=0.0,
        kl_estimator="k2",
        kl_place="loss",
        entropy_coef=0.0,
        corrections=NO_CORRECTIONS,
        overlong_buffer=0.0,
        overlong_filter=False,
        limit=limit,
        off_policy=False,
    )


def total_loss(objective: Objective, terms: LossTerms, batch: Batch, scores: PolicyOutputs) -> LossOutput:
    """The per-token loss that is trained on, with the objective's metrics and those that every objective has.

    Raises:
        RloptError: an input is not finite, or the loss is not; it names the tensor and the first such place.
    """
    names = ("rollout_logprobs", "old_logprobs", "reference", "advantages")
    inputs = {f"Batch.{name}": values for name in names if (values := getattr(batch, name)) is not None}
    outputs = {"Scores.logprobs": scores.logprobs.detach(), "Scores.entropy": scores.entropy.detach()}
    _refuse_infinite(inputs | outputs, batch.mask)
    policy = objective.loss(batch, scores)
    corrected = terms.corrections.apply(policy, objective.traits.surrogate == "ratio", batch, scores)
    per_token = corrected.per_token
    if terms.kl_coef and terms.kl_place == "loss":
        assert batch.reference is not None, "the config refuses algo.kl.every where KL is in the loss"
        log_ratio = (scores.logprobs - batch.rollout_logprobs) * batch.mask
        per_token = per_token + terms.kl_coef * kl(terms.kl_estimator, scores.logprobs, batch.reference, log_ratio)
    if terms.entropy_coef:
        per_token = per_token - terms.entropy_coef * scores.entropy
    _refuse_infinite({"the loss": per_token.detach()}, batch.mask)
    with torch.no_grad():
        common = _statistics(batch, scores)
        if terms.off_policy:
            common |= _off_policy(batch, scores)
        common["actor/pg_loss"] = Sum(number(corrected.per_token * batch.weights))
    return LossOutput(per_token, {**common, **corrected.metrics})


def clip_fraction(keep: Mask, batch: Batch) -> dict[str, Metric]:
    """The one metric that every clipping objective reports: `keep` `[B, T]` is 1 where the clip keeps the gradient."""
    return {"actor/pg_clipfrac": masked_mean(1 - keep.to(batch.mask.dtype), batch.mask)}


def clipped_surrogate(ratio: Tokens, batch: Batch, low: float, high: float) -> LossOutput:
    """PPO's surrogate of `ratio` `[B, T]`, of the token or of its sequence, as a loss with its clip fraction."""
    keep = one_side(ratio, batch.advantages, low, high)
    return LossOutput(ppo_clip(ratio, batch.advantages, low, high) * batch.mask, clip_fraction(keep, batch))


def merge(parts: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """One mapping from those of all micro-batches and ranks. Every part must have the same names."""
    merged = dict(parts[0])
    for part in parts[1:]:
        if part.keys() != merged.keys():
            raise KeyError(f"metrics differ between micro-batches: {sorted(part.keys() ^ merged.keys())}")
        merged = {name: metric.merge(part[name]) for name, metric in merged.items()}  # type: ignore[arg-type]
    return merged


def _refuse_infinite(named: Mapping[str, Tensor], mask: Tensor) -> None:
    """Refuse what is not finite where the mask is 1. The host waits for the device once; the place is looked for on failure."""
    spoken = mask > 0
    if torch.stack([(torch.isfinite(values) | ~spoken).all() for values in named.values()]).all():
        return
    name, wrong = next((n, w) for n, values in named.items() if (w := ~torch.isfinite(values) & spoken).any())
    sequence, token = wrong.nonzero()[0].tolist()
    raise RloptError(
        f"{name} is {named[name][sequence, token].item()} at sequence {sequence}, token {token}: not finite; "
        "lower learner.lr, or have the ratio bounded: by a clip, or by algo.correction with algo.old_logprobs=proximal"
    )


def _statistics(batch: Batch, scores: PolicyOutputs) -> dict[str, Metric]:
    mask = batch.mask
    entropy: dict[str, Metric] = {"actor/entropy": masked_mean(scores.entropy, mask)}
    if batch.reference is None:
        return entropy
    policy, reference = scores.logprobs * mask, batch.reference * mask
    names: tuple[KLEstimator, ...] = ("k1", "k2", "k3")
    metrics: dict[str, Metric] = {
        f"actor/kl_{name}": masked_mean(kl(name, policy, reference, torch.zeros_like(policy)), mask) for name in names
    }
    return metrics | entropy


def _off_policy(batch: Batch, scores: PolicyOutputs) -> dict[str, Metric]:
    mask = batch.mask
    distance = (scores.logprobs - batch.rollout_logprobs) * mask
    ratio = torch.exp(distance).double() * mask
    return {
        "offpolicy/ratio_mean": masked_mean(ratio, mask),
        "offpolicy/ratio_max": Max(ratio.max()),
        "offpolicy/ess": Ess(number(ratio), number(ratio.square()), number(mask)),
        "offpolicy/behavior_kl": masked_mean(-distance, mask),
    }
