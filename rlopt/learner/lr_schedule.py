"""The learning rate of a step.

Our own, and not `transformers.get_scheduler`: there the first step of a warm-up has a learning rate of 0 and changes nothing,
which a synchronization would take for weights that did not move.
"""

import math

from rlopt.config.learners import LearnerConfig


def lr_factor(config: LearnerConfig, step: int, total_steps: int) -> float:
    """What `lr` is multiplied by at `step` (1-based): linear warm-up, then the schedule, at 0 after the last step."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    done = max(0, step - 1 - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    if config.lr_schedule == "linear":
        return warm * (1 - done)
    return warm * (0.5 * (1 + math.cos(math.pi * done)) if config.lr_schedule == "cosine" else 1.0)
