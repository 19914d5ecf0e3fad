"""Reward functions, and the pool of processes that calls them. It does not know what rewards are used for.

The functions of `__all__` are public: `reward.fn=rlopt.rewards:mathematics`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlopt.rewards.math import boxed, brevity, exact, mathematics, mathematics_boxed, mathematics_marked
    from rlopt.rewards.reasoning import reasoning_gym

__all__ = ["boxed", "brevity", "exact", "mathematics", "mathematics_boxed", "mathematics_marked", "reasoning_gym"]


def __getattr__(name: str) -> Any:
    """A public function, imported when it is asked for: sympy, which reads answers, takes a second to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlopt.rewards import math, reasoning

    return getattr(reasoning if name == "reasoning_gym" else math, name)
