"""The embedded task: sums and products with worked steps, a step checker and a reward.

A problem is an expression of two to four terms, `12+7*3=`. A worked solution does one operation a line, products
before sums and left before right, and ends with the answer:

    Step 1: 7*3=21
    Step 2: 12+21=33
    Answer: 33

`corpus` also writes terse solutions (the answer alone) and solutions with a slip, so that a model trained on it has
something to unlearn: that is what reinforcement then does. This module is data only; `tiny` trains models on it.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_STEP = re.compile(r"Step (\d+): (\d+)([+*])(\d+)=(\d+)")
_ANSWER = re.compile(r"Answer: (\d+)")
_PROBLEM = re.compile(r"(\d+(?:[+*]\d+)+)=")

CHARACTERS = "0123456789+*=:\n AStepnswr"
"""Every character that a problem or a solution can hold."""


@dataclass(frozen=True)
class Problem:
    """An expression as alternating numbers and operators, e.g. `(12, "+", 7, "*", 3)`."""

    terms: tuple[int | str, ...]

    @property
    def text(self) -> str:
        return "".join(map(str, self.terms)) + "="

    @property
    def answer(self) -> int:
        return _value(self.terms)

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """The problem that `text` (as `Problem.text` writes it) states; ValueError when it states none."""
        found = _PROBLEM.fullmatch(text.strip())
        if not found:
            raise ValueError(f"{text!r} is not an arithmetic problem: want numbers joined by + and *, then '='")
        parts = re.findall(r"\d+|[+*]", found[1])
        return cls(tuple(int(part) if part.isdigit() else part for part in parts))


def draw_problem(rng: random.Random) -> Problem:
    """A sum of numbers (2 to 99) and products (2 to 12 times 2 to 9) with two to four numbers in all."""
    return mixed(rng, rng.choices((2, 3, 4), weights=(2, 4, 3))[0], factor=12, summand=99)


def mixed(rng: random.Random, count: int, factor: int, summand: int) -> Problem:
    """A sum of numbers (2 to `summand`) and products (2 to `factor` times 2 to 9) with `count` numbers in all."""
    terms: list[int | str] = []
    while count:
        if count >= 2 and rng.random() < 0.4:
            terms += [rng.randint(2, factor), "*", rng.randint(2, 9), "+"]
            count -= 2
        else:
            terms += [rng.randint(2, summand), "+"]
            count -= 1
    return Problem(tuple(terms[:-1]))


def steps(problem: Problem) -> Iterator[tuple[int, str, int, int]]:
    """The operations of the worked solution in order, as (left, operator, right, result)."""
    terms = list(problem.terms)
    while len(terms) > 1:
        at = terms.index("*") if "*" in terms else 1
        left, operator, right = terms[at - 1 : at + 2]
        result = _value((left, operator, right))
        yield int(left), str(operator), int(right), result
        terms[at - 1 : at + 2] = [result]


def worked(problem: Problem) -> str:
    """The right solution with one line per operation."""
    lines = [f"Step {k}: {a}{op}{b}={c}\n" for k, (a, op, b, c) in enumerate(steps(problem), 1)]
    return "".join(lines) + f"Answer: {problem.answer}"


def first_wrong_step(prompt: str, completion: str) -> int | None:
    """The 1-based number of the first step of `completion` that is not the next operation done right.

    A missing step and a wrong final answer count as the step after the last right one. None when all is right, or when
    `completion` claims no steps and its answer is right (a terse solution that guessed well).
    """
    problem = Problem.parse(prompt)
    expected = list(steps(problem))
    lines = completion.rstrip("\n").split("\n")
    claimed, last = lines[:-1], lines[-1]
    for k, line in enumerate(claimed, 1):
        found = _STEP.fullmatch(line)
        if not found or k > len(expected) or int(found[1]) != k:
            return k
        if (int(found[2]), found[3], int(found[4]), int(found[5])) != expected[k - 1]:
            return k
    found = _ANSWER.fullmatch(last)
    right = found is not None and int(found[1]) == problem.answer and len(claimed) in (0, len(expected))
    return None if right else len(claimed) + 1


def split_steps(completion: str) -> list[str]:
    """The lines of `completion`, each with its line break: every step, and the answer. Joined they are `completion`."""
    return re.findall(r"[^\n]*\n|[^\n]+", completion)


def locate(prompt: str, steps: list[str], answer: str) -> int | None:
    """The 0-based place of the first of `steps` (as `split_steps` gives them) that is wrong; None when none is."""
    wrong = first_wrong_step(prompt, "".join(steps))
    return None if wrong is None else wrong - 1


def reward(prompt: str, completion: str, answer: str, **extra: object) -> float:
    """1.0 when the last line is `Answer: N` with the right N, else 0.0. Steps are not looked at."""
    found = _ANSWER.fullmatch(completion.rstrip("\n").split("\n")[-1])
    return float(found is not None and found[1] == answer)


def problems(seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """`count` different problems. Held-out and other problems never overlap: a hash of the text decides the side."""
    return distinct(seed, count, held_out, draw_problem)


def distinct(seed: int, count: int, held_out: bool, draw: Callable[[random.Random], Problem]) -> list[Problem]:
    """`count` different problems that `draw` draws, of one of the two sides."""
    rng = random.Random(f"{seed}/{held_out}")
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        problem = draw(rng)
        if (sum(map(ord, problem.text)) * 2654435761 % 2**32 % 10 == 0) == held_out:
            chosen[problem.text] = problem
    return list(chosen.values())


def corpus(rng: random.Random, worked_share: float, slip_share: float) -> Iterator[tuple[str, str]]:
    """Endless (prompt, solution) pairs to train a base model on.

    Args:
        rng: random numbers.
        worked_share: share of solutions with steps; the others are terse and right.
        slip_share: share of worked solutions in which one operation goes wrong and the error is carried on.
    """
    while True:
        problem = draw_problem(rng)
        if rng.random() >= worked_share:
            yield problem.text, f"Answer: {problem.answer}"
        elif rng.random() >= slip_share:
            yield problem.text, worked(problem)
        else:
            yield problem.text, _with_slip(problem, rng)


def _with_slip(problem: Problem, rng: random.Random) -> str:
    """A worked solution in which one operation's result is off, and what follows builds on it."""
    terms, lines = list(problem.terms), list[str]()
    slip = rng.randrange(len(terms) // 2)
    while len(terms) > 1:
        at = terms.index("*") if "*" in terms else 1
        left, operator, right = terms[at - 1 : at + 2]
        result = _value((left, operator, right))
        if len(lines) == slip:
            result = max(0, result + rng.choice((-10, -2, -1, 1, 2, 10)))
        lines.append(f"Step {len(lines) + 1}: {left}{operator}{right}={result}\n")
        terms[at - 1 : at + 2] = [result]
    return "".join(lines) + f"Answer: {terms[0]}"


def _value(terms: tuple[int | str, ...]) -> int:
    """The value of alternating numbers and operators, products first."""
    total, product = 0, int(terms[0])
    for operator, term in zip(terms[1::2], terms[2::2], strict=True):
        if operator == "*":
            product *= int(term)
        else:
            total, product = total + product, int(term)
    return total + product
