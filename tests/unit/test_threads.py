"""How many threads workers on a CPU get."""

import pytest

from rlopt.cluster.threads import engine_threads, learner_threads


@pytest.mark.parametrize(
    ("parameters", "workers", "cores", "engine", "learner"),
    [
        (130_000, 2, 2, 1, 1),  # a tiny model: a second thread would cost more than it computes
        (6_900_000, 2, 2, 1, 2),  # an engine and a learner share two cores: the learner may use what the engine leaves idle
        (34_000_000, 2, 16, 8, 11),  # one for every three million parameters at most
        (7_000_000_000, 1, 16, 16, 16),  # alone: never more than there are
        (7_000_000_000, 10, 16, 1, 3),  # a share of 1.6 cores, and twice that
        (7_000_000_000, 64, 16, 1, 1),
    ],
)
def test_threads_follow_from_the_models_size_the_workers_and_the_cores(
    parameters: int, workers: int, cores: int, engine: int, learner: int
) -> None:
    assert engine_threads("auto", parameters, workers, cores) == engine
    assert learner_threads("auto", parameters, workers, cores) == learner
    assert engine_threads(3, parameters, workers, cores) == learner_threads(3, parameters, workers, cores) == 3
