"""What is refused before anything is started: records without what an algorithm needs."""

import pytest
from builders import compose

from rlopt.run.objective import make_objective, make_terms, why_logprobs


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["+algo=grpo"], "takes ratios against them"),
        (["+algo=reinforce"], None),
        (["+algo=reinforce", "algo.kl.coef=0.1"], None),
        (
            ["+algo=reinforce", "algo.kl.coef=0.1", "algo.kl.place=reward"],
            "algo.kl.place=reward takes their KL from the reward",
        ),
        (
            ["+algo=reinforce", "algo.kl.coef=0.1", "algo.kl.estimator=k3_unbiased"],
            "algo.kl.estimator=k3_unbiased weighs by them",
        ),
        (["+algo=reinforce", "algo.dual_clip=3.0"], "algo.dual_clip bounds ratios against them"),
    ],
)
def test_behavior_log_probabilities_are_needed_by_all_that_reads_them(overrides: list[str], why: str | None) -> None:
    config = compose(*overrides)
    said = why_logprobs(config, make_objective(config), make_terms(config))
    assert said == why or (why and said and why in said)
