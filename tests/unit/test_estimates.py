"""pass@k, averages and intervals, by hand."""

import pytest
from builders import group

from rlopt.evaluation.pass_at_k import estimate, pass_at_k, reaches, scores


@pytest.mark.parametrize(("answers", "right", "k", "chance"), [
    (4, 1, 1, 0.25),
    (4, 1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    (4, 2, 2, 5 / 6),  # 1 - 1/6
    (4, 1, 4, 1.0),
    (4, 0, 4, 0.0),
    (4, 3, 2, 1.0),  # no two wrong ones to draw
])  # fmt: skip
def test_pass_at_k_is_the_chance_of_a_right_one_among_k(answers: int, right: int, k: int, chance: float) -> None:
    assert pass_at_k(answers, right, k) == pytest.approx(chance)


def test_scores_have_a_value_per_prompt_and_powers_of_two() -> None:
    groups = [group("a", (1.0, 0.0, 0.0)), group("b", (1.0, 1.0, 0.5))]
    assert scores(groups, 3, right=1.0) == {
        "avg@3": [pytest.approx(1 / 3), pytest.approx(2.5 / 3)],
        "pass@1": [pytest.approx(1 / 3), pytest.approx(2 / 3)],
        "pass@2": [pytest.approx(2 / 3), pytest.approx(1.0)],
        "pass@3": [1.0, 1.0],
    }


def test_a_prompt_that_lost_an_answer_has_no_value() -> None:
    assert scores([group("a", (1.0,)), group("b", (0.0, 1.0))], 2, right=1.0)["avg@2"] == [0.5]
    assert scores([group("a", (1.0,))], 2, right=1.0) == {}


def test_the_interval_holds_the_mean_and_narrows_with_the_number_of_prompts() -> None:
    few, many = estimate([0.0, 1.0] * 10, 1000), estimate([0.0, 1.0] * 1000, 1000)
    for found in (few, many):
        assert found.value == 0.5
        assert found.low < 0.5 < found.high
    # A mean of n coins has a standard deviation of 1 / 2 sqrt(n); 95% are 1.96 of it to either side.
    assert few.high - few.low == pytest.approx(2 * 1.96 / 2 / 20**0.5, rel=0.15)
    assert many.high - many.low == pytest.approx(2 * 1.96 / 2 / 2000**0.5, rel=0.15)
    assert estimate([1.0, 1.0], 10) == estimate([1.0, 1.0], 10)


def test_a_reward_that_rounding_left_below_what_is_right_reaches_it() -> None:
    assert 0.7 + 0.2 + 0.1 < 1
    assert reaches(0.7 + 0.2 + 0.1, 1.0)
    assert reaches(1.0, 1.0)
    assert not reaches(0.999999, 1.0)
    assert reaches(-1e-13, 0.0)
