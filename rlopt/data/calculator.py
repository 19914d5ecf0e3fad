"""The embedded task with a tool: arithmetic with a calculator at hand, which `environments.embedded` is.

The policy writes `[7*3]`, and reads `21` and a line break. An episode of `12+7*3=`:

    [7*3]            the policy; `]` ends its turn (env.stop)
    21               the environment
    [12+21]
    33
    Answer: 33       the policy; scored as `data.arithmetic.reward` does

`tiny_calculator` is trained on `corpus`: it calls often, sometimes for something else than it should, and often answers from
its head, which is mostly wrong. To call always and rightly is what reinforcement finds.
"""

import random
import re
from collections.abc import Iterator

from rlopt.core.pieces import Pieces
from rlopt.data import arithmetic

CHARACTERS = arithmetic.CHARACTERS + "[]?"
"""Every character that an episode can hold."""

_CALL = re.compile(r"\[(\d{1,6})([+*])(\d{1,6})\]")


def result(action: str) -> str | None:
    """What the calculator says to a turn that ends with a call; None where that is not one operation on two numbers."""
    found = _CALL.fullmatch(action[action.rfind("[") :]) if "[" in action else None
    if not found:
        return None
    left, right = int(found[1]), int(found[3])
    return str(left * right if found[2] == "*" else left + right)


def corpus(rng: random.Random, calls_share: float, slip_share: float) -> Iterator[Pieces]:
    """Endless episodes to train a base model on, as pieces: (text, whether the policy wrote it).

    Args:
        rng: random numbers.
        calls_share: share of episodes with a call for every operation; in the others the answer comes at once, and is right.
        slip_share: share of the episodes with calls in which one of them is for another operation.
    """
    while True:
        problem = arithmetic.draw_problem(rng)
        pieces: Pieces = [(problem.text, False)]
        if rng.random() >= calls_share:
            yield [*pieces, (f"Answer: {problem.answer}", True)]
            continue
        operations = list(arithmetic.steps(problem))
        slip = rng.randrange(len(operations)) if rng.random() < slip_share else None
        said = str(problem.answer)
        for number, (left, operator, right, _) in enumerate(operations):
            off = rng.randint(1, 9) if number == slip else 0
            call = f"[{left + off}{operator}{right}]"
            said = result(call) or "?"
            pieces += [(call, True), (said + "\n", False)]
        yield [*pieces, (f"Answer: {said}", True)]
