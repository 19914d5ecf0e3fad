"""The embedded task whose base model rambles: arithmetic, with steps said again, checks and detours between the steps.

    12+7*3=

    Step 1: 7*3=21
    7*3=21                 said again
    4+9=13                 a detour
    Step 2: 12+21=33
    Answer: 33

Everything between the steps may be left out. `tiny_verbose` is trained on `corpus`, in which nearly every solution rambles, the
more often wrongly the longer it is, and some never end. To come to the point is what reinforcement finds, so that responses
become shorter. `arithmetic.reward` scores it: the last line has to be the right answer.
"""

import random
from collections.abc import Iterator

from rlopt.data import arithmetic
from rlopt.data.arithmetic import Problem

CHARACTERS = arithmetic.CHARACTERS
"""Every character that a problem or a solution can hold."""

LONGEST = 192
"""Characters of a problem with a solution that never ends; what is needed takes 20 to 60 of them."""


def draw_problem(rng: random.Random) -> Problem:
    """A sum of numbers (2 to 49) and products (2 to 9 times 2 to 9) with two or three numbers in all."""
    return arithmetic.mixed(rng, rng.choice((2, 3, 3)), factor=9, summand=49)


def problems(seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """`count` different problems. Held-out and other problems never overlap: a hash of the text decides the side."""
    return arithmetic.distinct(seed, count, held_out, draw_problem)


def corpus(rng: random.Random, ramble_share: float, slip_share: float) -> Iterator[tuple[str, str]]:
    """Endless (prompt, solution) pairs to train a base model on.

    Args:
        rng: random numbers.
        ramble_share: share of solutions that ramble; the others have what is needed alone, and are right.
        slip_share: chance of each line too many that the next step, or the answer, comes out wrong. Twice as many solutions
            never end.
    """
    while True:
        problem = draw_problem(rng)
        if rng.random() >= ramble_share:
            yield problem.text, arithmetic.worked(problem)
        else:
            yield problem.text, rambling(problem, rng, slip_share)


def rambling(problem: Problem, rng: random.Random, slip_share: float) -> str:
    """A worked solution with up to eight lines too many; one that never ends is as long as there is room."""
    terms, lines, number, slip = list(problem.terms), list[str](), 0, False
    endless = rng.random() < 2 * slip_share
    while len(terms) > 1:
        place = terms.index("*") if "*" in terms else 1
        left, operator, right = terms[place - 1 : place + 2]
        result = max(0, Problem((left, operator, right)).answer + (rng.choice((-2, -1, 1, 2)) if slip else 0))
        number += 1
        lines.append(f"Step {number}: {left}{operator}{right}={result}\n")
        terms[place - 1 : place + 2] = [result]
        more, slip = rng.choice((0, 1, 2, 3, 4)), False
        for _ in range(more):
            lines.append(_aside(lines, rng))
            slip = slip or rng.random() < slip_share
    if endless:
        while sum(map(len, lines)) < LONGEST:
            lines.append(_aside(lines, rng))
        return "".join(lines)[: LONGEST - len(problem.text)]
    return "".join(lines) + f"Answer: {int(terms[0]) + (rng.choice((-1, 1)) if slip else 0)}"


def _aside(lines: list[str], rng: random.Random) -> str:
    """A line too many: one that is there already, with or without its number, or an operation that nobody asked for."""
    kind = rng.random()
    if kind < 0.6:
        line = rng.choice(lines[-3:])
        return line if kind < 0.3 else line.rpartition(" ")[2]
    left, operator, right = rng.randint(2, 9), rng.choice("+*"), rng.randint(2, 9)
    return f"{left}{operator}{right}={Problem((left, operator, right)).answer}\n"
