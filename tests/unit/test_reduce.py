"""Metrics while they are tensors, and when they are numbers."""

import torch

from rlopt.core.reduce import Ess, Max, Mean, Metric, Sum, fetched
from rlopt.objectives.core import merge


def test_metrics_are_fetched_as_the_numbers_that_they_hold_and_merge_as_numbers_do() -> None:
    first: dict[str, Metric] = {
        "sum": Sum(torch.tensor(1.5)),
        "mean": Mean(torch.tensor(6.0), 4.0),
        "max": Max(torch.tensor(2.0)),
        "ess": Ess(torch.tensor(3.0), torch.tensor(5.0), torch.tensor(2.0)),
    }
    second: dict[str, Metric] = {"sum": Sum(2.0), "mean": Mean(2.0, 0.0), "max": Max(-1.0), "ess": Ess(1.0, 1.0, 1.0)}
    parts = fetched([first, second])
    assert parts == [
        {"sum": Sum(1.5), "mean": Mean(6.0, 4.0), "max": Max(2.0), "ess": Ess(3.0, 5.0, 2.0)},
        second,
    ]
    assert not any(isinstance(value, torch.Tensor) for metric in parts[0].values() for value in vars(metric).values())
    merged = {name: metric.value for name, metric in merge(parts).items()}
    assert merged == {"sum": 3.5, "mean": 2.0, "max": 2.0, "ess": 4.0**2 / (3 * 6)}
