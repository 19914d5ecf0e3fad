"""Averages and pass@k from several answers per prompt, with confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from rlopt.core.samples import Group


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, and its 95% bootstrap interval over prompts."""

    value: float
    low: float
    high: float


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The unbiased estimate of the probability that at least one of `k` answers is right, from `answers` with `right` right
    ones.

        1 - C(n - c, k) / C(n, k)

    Chen et al. 2021, Evaluating Large Language Models Trained on Code (arXiv 2107.03374), equation 1.
    """
    return 1 - comb(answers - right, k) / comb(answers, k)


def reaches(reward: float, right: float) -> bool:
    """Whether a reward is at or above `right`, up to rounding."""
    return reward >= right or math.isclose(reward, right, rel_tol=1e-9, abs_tol=1e-12)


def estimate(values: Sequence[float], rounds: int, seed: int = 0) -> Estimate:
    """The mean of one value per prompt, and its interval: percentiles of the means of `rounds` resamplings."""
    data = np.array(values)
    drawn = np.random.default_rng(seed).integers(len(data), size=(rounds, len(data)))
    low, high = np.quantile(data[drawn].mean(1), [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high))


def scores(groups: Sequence[Group], count: int, right: float) -> dict[str, list[float]]:
    """avg@k of k = `count`, and pass@k of k = 1, 2, 4, ... up to it: a value per prompt.

    Args:
        groups: answers by prompt; those with less than `count` (rewards may fail) have no value.
        right: reward at or above which an answer is right.
    """
    rewards = [[sample.reward for sample in group.samples] for group in groups if len(group.samples) == count]
    if not rewards:
        return {}
    found = {f"avg@{count}": [float(np.mean(values)) for values in rewards]}
    for k in [*(2**i for i in range(count.bit_length()) if 2**i < count), count]:
        found[f"pass@{k}"] = [pass_at_k(count, sum(reaches(value, right) for value in values), k) for values in rewards]
    return found
