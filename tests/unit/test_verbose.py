"""The embedded task whose solutions ramble: what is needed stands there in order, with lines too many between."""

import random
from itertools import islice
from statistics import fmean

from rlopt.data import arithmetic, verbose
from rlopt.data.arithmetic import Problem
from rlopt.models.tiny import TASKS


def rows(ramble_share: float, slip_share: float) -> list[tuple[str, str]]:
    return list(islice(verbose.corpus(random.Random(0), ramble_share, slip_share), 2000))


def right(prompt: str, solution: str) -> float:
    return arithmetic.reward(prompt, solution, str(Problem.parse(prompt).answer))


def test_a_solution_that_does_not_ramble_has_what_is_needed_alone() -> None:
    assert all(solution == arithmetic.worked(Problem.parse(prompt)) for prompt, solution in rows(0.0, 0.5))


def test_a_solution_that_rambles_without_slips_has_every_step_in_order_and_is_right() -> None:
    for prompt, solution in rows(1.0, 0.0):
        lines = solution.splitlines()
        needed = arithmetic.worked(Problem.parse(prompt)).splitlines()
        places = [lines.index(line) for line in needed]
        assert places == sorted(places)
        assert len(lines) <= len(needed) + 8
        assert right(prompt, solution) == 1.0


def test_rambling_solutions_are_over_twice_as_long_and_wrong_the_oftener_the_longer_they_are() -> None:
    made = rows(1.0, 0.2)
    needed = fmean(len(arithmetic.worked(Problem.parse(prompt))) for prompt, _ in made)
    assert 2 < fmean(len(solution) for _, solution in made) / needed < 4
    middle = sorted(len(solution) for _, solution in made)[len(made) // 2]
    shorter, longer = ([row for row in made if (len(row[1]) < middle) == side] for side in (True, False))
    assert fmean(right(*row) for row in shorter) > 2 * fmean(right(*row) for row in longer)


def test_a_share_of_solutions_never_ends_and_fills_the_room_there_is() -> None:
    made = rows(1.0, 0.2)
    endless = [(prompt, solution) for prompt, solution in made if "Answer" not in solution]
    assert 0.35 < len(endless) / len(made) < 0.45
    assert {len(prompt) + len(solution) for prompt, solution in endless} == {verbose.LONGEST}
    assert max(len(prompt) + len(solution) for prompt, solution in made) == verbose.LONGEST == TASKS["tiny_verbose"].length


def test_everything_is_written_in_the_known_characters() -> None:
    assert set("".join(prompt + solution for prompt, solution in rows(0.9, 0.2))) <= set(verbose.CHARACTERS)


def test_held_out_problems_are_others() -> None:
    train, held_out = verbose.problems(1, 200), verbose.problems(1, 200, held_out=True)
    assert not {p.text for p in train} & {p.text for p in held_out}
