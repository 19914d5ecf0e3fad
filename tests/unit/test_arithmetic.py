"""The embedded task: problems, worked solutions, the step checker and the reward."""

import random
from itertools import islice

import pytest

from rlopt.data import arithmetic
from rlopt.data.arithmetic import Problem, first_wrong_step, reward, worked

RIGHT = "Step 1: 7*3=21\nStep 2: 12+21=33\nStep 3: 33+5=38\nAnswer: 38"


def test_a_worked_solution_does_products_first_and_then_sums_from_the_left() -> None:
    assert worked(Problem.parse("12+7*3+5=")) == RIGHT


def test_the_checker_names_the_first_wrong_step() -> None:
    prompt = "12+7*3+5="
    assert first_wrong_step(prompt, RIGHT) is None
    assert first_wrong_step(prompt, RIGHT.replace("12+21=33", "12+21=34")) == 2
    assert first_wrong_step(prompt, RIGHT.replace("Step 2", "Step 4")) == 2
    assert first_wrong_step(prompt, RIGHT.replace("Answer: 38", "Answer: 39")) == 4
    assert first_wrong_step(prompt, "Step 1: 12+7=19\nAnswer: 38") == 1
    assert first_wrong_step(prompt, "Answer: 38") is None
    assert first_wrong_step(prompt, "Answer: 37") == 1
    assert first_wrong_step(prompt, "Step 1: 7*3=21\nAnswer: 38") == 2
    assert first_wrong_step(prompt, "") == 1


def test_the_reward_looks_at_the_last_line_alone() -> None:
    assert reward("12+7*3+5=", RIGHT, "38") == 1.0
    assert reward("12+7*3+5=", "Answer: 38", "38") == 1.0
    assert reward("12+7*3+5=", "Answer: 38\nAnswer: 37", "38") == 0.0
    assert reward("12+7*3+5=", "38", "38") == 0.0


def test_problems_follow_from_their_seed_and_held_out_ones_are_others() -> None:
    train, again, other = (arithmetic.problems(seed, 300) for seed in (1, 1, 2))
    assert train == again
    assert train != other
    held_out = arithmetic.problems(1, 300, held_out=True)
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert len({p.text for p in train}) == 300


def test_every_problem_and_solution_is_written_in_the_known_characters_and_fits() -> None:
    for prompt, solution in islice(arithmetic.corpus(random.Random(0), 0.6, 0.35), 2000):
        assert set(prompt + solution) <= set(arithmetic.CHARACTERS)
        assert len(prompt) + len(solution) < 96


def test_slips_are_as_frequent_as_asked_and_the_checker_finds_them() -> None:
    pairs = list(islice(arithmetic.corpus(random.Random(0), 1.0, 0.5), 2000))
    wrong = sum(first_wrong_step(prompt, solution) is not None for prompt, solution in pairs)
    assert 0.45 < wrong / 2000 < 0.55


def test_what_is_not_a_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="'1-1=' is not an arithmetic problem"):
        Problem.parse("1-1=")
