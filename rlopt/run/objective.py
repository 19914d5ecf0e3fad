"""The objective of a run and what composes with it, from the config."""

from typing import Any, get_args

from rlopt.config.compose import read
from rlopt.config.schema import Config
from rlopt.config.sections import GroupRelativeConfig
from rlopt.core import user_code
from rlopt.core.batches import Average
from rlopt.core.errors import RloptError, need
from rlopt.objectives.core import LossTerms, Objective, WithAdvantages, no_loss_terms
from rlopt.objectives.corrections import Correction, Corrections
from rlopt.objectives.registry import load_class


def make_objective(config: Config) -> Objective:
    """The objective that `algo.objective` names, from its keys, and the function of `algo.advantages` if there is one.

    Raises:
        RloptError: it cannot be imported or lacks something, or it does not go with the other keys.
    """
    objective: Any = read(load_class(config.algo.objective), config.algo.options, "algo.")
    shared, traits, name = config.algo.group_relative, objective.traits, f"algo.objective={config.algo.objective}"
    if (shared is not None) != (traits.rows == "groups"):
        does = "samples groups" if shared else "samples nothing"
        raise RloptError(f"{name}: learns from {traits.rows}, and +algo={config.algo.name} {does}; choose another +algo")
    average, pairs = objective.average, traits.rows in ("pairs", "step_pairs")
    need(average in get_args(Average), "algo.average", average, f"no such average; one of {', '.join(get_args(Average))}")
    need((average == "pair_mean") == pairs, "algo.average", average, "pair_mean is for objectives that learn from pairs alone")
    if not shared:
        return objective  # type: ignore[no-any-return]
    proximal = shared.old_logprobs == "proximal"
    need(
        proximal or traits.reads != "proximal",
        "algo.old_logprobs",
        shared.old_logprobs,
        f"{name} needs algo.old_logprobs=proximal",
    )
    corrections = make_terms(config).corrections
    need(
        not proximal or traits.reads in ("anchor", "proximal") or corrections.importance.active,
        "algo.old_logprobs",
        shared.old_logprobs,
        f"{name} does not read them, so scoring them is wasted; set algo.old_logprobs=behavior",
    )
    need(
        not corrections.importance.active or traits.reads in ("nothing", "anchor"),
        "algo.correction.weight",
        shared.correction.weight,
        f"{name} weighs by the behavior policy itself; leave algo.correction alone",
    )
    if traits.clips_in_credit:
        why = f"{name} clips once a step, in its advantages"
        need(shared.minibatches == 1, "algo.minibatches", shared.minibatches, f"{why}; set it to 1")
        need(shared.advantages is None, "algo.advantages", shared.advantages, f"{why}; leave it out")
    if shared.advantages:
        return WithAdvantages(objective, user_code.load("algo.advantages", shared.advantages))  # type: ignore[arg-type]
    return objective  # type: ignore[no-any-return]


def reference_every(config: Config, objective: Objective) -> int:
    """Steps from one use of the reference to the next; 0: it is never needed, and not loaded."""
    if config.algo.group_relative:
        return config.algo.group_relative.kl.every
    return 0 if objective.traits.rows == "answers" else 1


def make_terms(config: Config) -> LossTerms:
    """The loss terms that compose with the objective; none where rows are recorded."""
    shared, limit = config.algo.group_relative, config.rollout.max_new_tokens
    if shared is None:
        return no_loss_terms(limit)
    return LossTerms(
        kl_coef=shared.kl.coef,
        kl_estimator=shared.kl.estimator,
        kl_place=shared.kl.place,
        entropy_coef=shared.entropy_coef,
        corrections=_corrections(shared),
        overlong_buffer=shared.overlong.buffer,
        overlong_filter=shared.overlong.filter,
        limit=limit,
        off_policy=True,
    )


def _corrections(shared: GroupRelativeConfig) -> Corrections:
    correction = shared.correction
    importance = Correction(correction.weight, correction.cap, correction.mask, correction.low, correction.high)
    return Corrections(shared.dual_clip, importance, shared.opsm_delta)


def why_logprobs(config: Config, objective: Objective, terms: LossTerms) -> str | None:
    """Why rollout log-probabilities are needed, or None."""
    shared, reads = config.algo.group_relative, objective.traits.reads
    if reads in ("behavior", "proximal") or (reads == "anchor" and shared and shared.old_logprobs == "behavior"):
        return f"algo.objective={config.algo.objective} takes ratios against them"
    if terms.corrections.importance.active or terms.corrections.opsm_delta is not None:
        return "algo.correction or algo.opsm_delta compares with them"
    if terms.kl_coef and terms.kl_estimator in ("k3_corrected", "k3_unbiased"):
        return f"algo.kl.estimator={terms.kl_estimator} weighs by them"
    if shared and shared.old_logprobs == "behavior":
        if terms.kl_coef and terms.kl_place == "reward":
            return "algo.kl.place=reward takes their KL from the reward"
        if terms.corrections.dual_clip is not None:
            return "algo.dual_clip bounds ratios against them"
    return None
