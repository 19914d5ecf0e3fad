"""How many GPUs the workers of a run need, and whether a cluster can ever have room for them. Pure arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlopt.config.sections import ClusterConfig, RolloutConfig


@dataclass(frozen=True)
class Demand:
    """The GPUs that a run asks for.

    Attributes:
        gpus_per_engine: of a whole engine, all on one node.
        gpus_per_learner: of a rank, at most 1.
    """

    engines: int
    gpus_per_engine: float
    learners: int
    gpus_per_learner: float

    @classmethod
    def of(cls, cluster: ClusterConfig, rollout: RolloutConfig, engines: int, learners: int) -> "Demand":
        """Of so many engines and learner ranks."""
        return cls(engines, cluster.gpus_per_engine * rollout.tensor_parallel, learners, cluster.gpus_per_learner)

    @property
    def shared(self) -> bool:
        """Whether an engine and a learner rank have a card between them, from which weights need not travel."""
        return min(self.gpus_per_engine, self.gpus_per_learner) > 0 and self.gpus_per_engine + self.gpus_per_learner <= 1 + 1e-9

    @property
    def cards(self) -> int:
        """Whole cards that all of them take."""
        if self.shared:
            return max(self.engines, self.learners)
        return _cards(self.engines, self.gpus_per_engine) + _cards(self.learners, self.gpus_per_learner)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What is reserved before anything starts: a card for each pair, or the cards of all learner ranks."""
        if self.shared:
            return [{"GPU": 1.0}] * self.cards
        return [{"GPU": self.gpus_per_learner}] * (self.learners if self.gpus_per_learner else 0)


def shortage(demand: Demand, nodes: Mapping[str, float]) -> str | None:
    """Why the workers can never be placed on these nodes, by name with their GPUs; None if they perhaps can."""
    has = ", ".join(f"{name} {gpus:g}" for name, gpus in sorted(nodes.items()) if gpus) or "no GPU"
    each = demand.gpus_per_engine
    if demand.cards > sum(nodes.values()):
        parts = [
            f"{count} {what} of {gpus:g}"
            for count, what, gpus in (
                (demand.engines, "engine(s)", each),
                (demand.learners, "learner rank(s)", demand.gpus_per_learner),
            )
            if count and gpus
        ]
        return f"{' and '.join(parts)} need {demand.cards} GPU(s), and the cluster has {sum(nodes.values()):g} ({has})"
    if each >= 1 and (room := sum(gpus // each for gpus in nodes.values())) < demand.engines:
        return f"{demand.engines} engine(s) of {each:g} GPUs, each on one node: there is room for {room:g} ({has})"
    return None


def _cards(count: int, gpus: float) -> int:
    if not gpus:
        return 0
    return math.ceil(count * gpus) if gpus >= 1 else math.ceil(count / int(1 / gpus + 1e-9))
