"""Reward functions, and the pool of processes that calls them. It does not know what rewards are used for.

The functions below are public: `reward.fn=rlopt.rewards:mathematics`.
"""

from rlopt.rewards.math import boxed, brevity, exact, mathematics, mathematics_boxed, mathematics_marked

__all__ = ["boxed", "brevity", "exact", "mathematics", "mathematics_boxed", "mathematics_marked"]
