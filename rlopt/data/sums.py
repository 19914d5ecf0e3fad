"""The embedded task whose mistakes lie deep: sums of seven to twelve digits, one addition a line.

    3+8+5+1+9+4+7=

    3+8=11
    11+5=16
    16+1=17
    17+9=26
    26+4=30
    30+7=37
    Answer: 37

It is there for preference methods: a pair of answers that begin alike and part at a slip past the middle is what `rlopt.pairs`
makes of it. `arithmetic.reward` scores it, `arithmetic.split_steps` cuts it, and `locate` finds the first wrong line.
"""

import random
from collections.abc import Iterator

from rlopt.data import arithmetic
from rlopt.data.arithmetic import Problem

CHARACTERS = arithmetic.CHARACTERS
"""Every character that a problem or a solution can hold."""

FEWEST, MOST = 7, 12
"""Numbers of a sum. The longest problem with its solution takes 124 characters."""


def draw_problem(rng: random.Random) -> Problem:
    """A sum of seven to twelve digits (1 to 9)."""
    terms: list[int | str] = []
    for _ in range(rng.randint(FEWEST, MOST)):
        terms += [rng.randint(1, 9), "+"]
    return Problem(tuple(terms[:-1]))


def problems(seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """`count` different problems. Held-out and other problems never overlap: a hash of the text decides the side."""
    return arithmetic.distinct(seed, count, held_out, draw_problem)


def solution(problem: Problem, slip: int | None = None, off: int = 0) -> str:
    """The worked solution. The result of the line `slip` (from 0) is wrong by `off`, and what follows builds on it."""
    total, lines = int(problem.terms[0]), list[str]()
    for number, term in enumerate(problem.terms[2::2]):
        result = total + int(term) + (off if number == slip else 0)
        lines.append(f"{total}+{term}={result}\n")
        total = result
    return "".join(lines) + f"Answer: {total}"


def corpus(rng: random.Random, worked_share: float, slip_share: float) -> Iterator[tuple[str, str]]:
    """Endless (prompt, solution) pairs to train a base model on.

    Args:
        rng: random numbers.
        worked_share: share of solutions with steps; the others are the right answer alone.
        slip_share: share of worked solutions with a slip. Its line is the later one of two drawn evenly: on average it lies
            two thirds down.
    """
    while True:
        problem = draw_problem(rng)
        count = len(problem.terms) // 2
        if rng.random() >= worked_share:
            yield problem.text, f"Answer: {problem.answer}"
        elif rng.random() >= slip_share:
            yield problem.text, solution(problem)
        else:
            yield problem.text, solution(problem, max(rng.randrange(count), rng.randrange(count)), rng.choice((-2, -1, 1, 2)))


def locate(prompt: str, steps: list[str], answer: str) -> int | None:
    """The 0-based place of the first of `steps` that is not the next line done right; None when there is none.

    A missing line and a wrong answer count as the step after the last right one. The right answer alone has no wrong step.
    """
    right = arithmetic.split_steps(solution(Problem.parse(prompt)))
    if steps == right or steps == right[-1:]:
        return None
    for place, (step, wanted) in enumerate(zip(steps, right, strict=False)):
        if step != wanted:
            return place
    return min(len(steps), len(right))
