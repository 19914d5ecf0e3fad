"""The result of a check, and the limits that several checks share."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Level = Literal["fault", "warning", "fine", "unknown"]


NEAR = 2e-3
"""Nats. A mean gap at lag 0 below is rounding in float32."""


COARSE = 0.03
"""Nats. A mean gap at lag 0 below, of either sign, is rounding in bfloat16."""


BOUND = "an objective that clips, or algo.correction.weight=token algo.correction.cap=2.0 algo.old_logprobs=proximal"


TOP_P = -1.2
"""Nats. A nucleus holds more of the distribution than e to this, 0.3, in any use."""


@dataclass(frozen=True)
class CheckResult:
    """A verdict in plain words, the numbers it rests on, and what to do, by config key."""

    level: Level
    verdict: str
    evidence: str = ""
    remedy: str = ""


def percent(values: np.ndarray) -> str:
    return f"{values.mean():.0%}" if len(values) else "an unknown share"
