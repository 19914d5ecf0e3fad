"""Advantages of one group: `[G]` rewards in, `[G]` float64 out. Pure functions; the leaves choose among them."""

from typing import Literal

from torch import Tensor

EPSILON = 1e-6
"""Added to a standard deviation before dividing, as verl, TRL and Trinity-RFT do."""


def centered(rewards: Tensor) -> Tensor:
    """`A_i = R_i - mean(R)`."""
    rewards = rewards.double()
    return rewards - rewards.mean()


def standardized(rewards: Tensor, std: Literal["population", "sample"]) -> Tensor:
    """`A_i = (R_i - mean(R)) / (std(R) + 1e-6)`; population divides by G, sample by G - 1. A group of one gets 0."""
    if len(rewards) == 1:
        return centered(rewards)
    return centered(rewards) / (rewards.double().std(correction=0 if std == "population" else 1) + EPSILON)
