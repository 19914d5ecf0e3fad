"""The embedded task of long sums: problems, solutions, slips and the first wrong line."""

import random
from itertools import islice

import pytest

from rlopt.data import arithmetic, sums
from rlopt.data.arithmetic import Problem
from rlopt.models.tiny import TASKS

PROMPT = "3+8+5+1+9+4+7="
RIGHT = ["3+8=11\n", "11+5=16\n", "16+1=17\n", "17+9=26\n", "26+4=30\n", "30+7=37\n", "Answer: 37"]


def test_a_solution_adds_one_number_a_line() -> None:
    assert arithmetic.split_steps(sums.solution(Problem.parse(PROMPT))) == RIGHT
    assert arithmetic.reward(PROMPT, "".join(RIGHT), "37") == 1.0


def test_what_follows_a_slip_builds_on_it() -> None:
    text = sums.solution(Problem.parse(PROMPT), slip=3, off=-2)
    assert text == "3+8=11\n11+5=16\n16+1=17\n17+9=24\n24+4=28\n28+7=35\nAnswer: 35"
    assert sums.locate(PROMPT, arithmetic.split_steps(text), "37") == 3


@pytest.mark.parametrize(
    ("steps", "place"),
    [
        (RIGHT, None),
        (RIGHT[-1:], None),  # the answer alone, and right
        (["Answer: 38"], 0),
        ([*RIGHT[:-1], "Answer: 38"], 6),
        ([*RIGHT[:4], RIGHT[-1]], 4),  # two lines left out
        (RIGHT[:5], 5),  # cut short
        ([*RIGHT, "Answer: 37"], 7),
        ([], 0),
        (["3 + 8 = 11\n", *RIGHT[1:]], 0),
    ],
)
def test_the_first_wrong_step_is_found(steps: list[str], place: int | None) -> None:
    assert sums.locate(PROMPT, steps, "37") == place


def test_slips_are_as_frequent_as_asked_and_lie_two_thirds_down() -> None:
    pairs = list(islice(sums.corpus(random.Random(0), 1.0, 0.5), 2000))
    depths = []
    for prompt, solution in pairs:
        steps = arithmetic.split_steps(solution)
        place = sums.locate(prompt, steps, "")
        if place is not None:
            depths.append((place + 0.5) / (len(steps) - 1))
    assert 0.45 < len(depths) / 2000 < 0.55
    assert 0.63 < sum(depths) / len(depths) < 0.71


def test_every_problem_and_solution_is_written_in_the_known_characters_and_fits() -> None:
    for prompt, solution in islice(sums.corpus(random.Random(0), 0.9, 0.5), 2000):
        assert set(prompt + solution) <= set(sums.CHARACTERS)
        assert len(prompt) + len(solution) + 1 <= TASKS["tiny_sums_s"].length
        assert 6 <= prompt.count("+") <= 11


def test_problems_follow_from_their_seed_and_held_out_ones_are_others() -> None:
    train, again, held_out = sums.problems(1, 300), sums.problems(1, 300), sums.problems(1, 300, held_out=True)
    assert train == again
    assert not {p.text for p in train} & {p.text for p in held_out}
