"""How many threads workers on a CPU get."""

import pytest

from rlopt.cluster.threads import threads


@pytest.mark.parametrize(
    ("parameters", "workers", "cores", "count"),
    [
        (130_000, 2, 2, 1),  # a tiny model: a second thread would cost more than it computes
        (6_900_000, 2, 2, 2),  # an engine and a learner share two cores: each may use what the other leaves idle
        (34_000_000, 2, 16, 11),  # one for every three million parameters
        (7_000_000_000, 2, 16, 16),  # never more than there are
        (7_000_000_000, 10, 16, 3),  # twice a share of 1.6 cores
        (7_000_000_000, 64, 16, 1),
    ],
)
def test_threads_follow_from_the_models_size_the_workers_and_the_cores(
    parameters: int, workers: int, cores: int, count: int
) -> None:
    assert threads("auto", parameters, workers, cores) == count
    assert threads(3, parameters, workers, cores) == 3
