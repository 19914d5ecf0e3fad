"""The environments of the embedded tasks: small ones, as users write them."""

from collections.abc import Mapping
from typing import Any

from rlopt.data import arithmetic, calculator, guessing


class Calculator:
    """One operation a call: `[7*3]` is answered with `21`, what is not one with `?`. `data.calculator` has an episode."""

    def reset(self, row: Mapping[str, Any], seed: int) -> None:
        """The row's own prompt is the opening."""
        self._answer = row["answer"]

    def step(self, action: str) -> tuple[str | None, bool, float | None]:
        """A result and a line break after a call; else the episode is over, with 1 for `Answer: N` with the right N."""
        if action.endswith("]"):
            return f"{calculator.result(action) or '?'}\n", False, None
        return None, True, arithmetic.reward("", action, self._answer)


class Guessing:
    """`<` or `>` after a guess that is not right, `?` after what is not a number; `row["answer"]` is the hidden number."""

    def reset(self, row: Mapping[str, Any], seed: int) -> None:
        """The row's own prompt is the opening."""
        self._hidden = int(row["answer"])

    def step(self, action: str) -> tuple[str | None, bool, float]:
        """The episode is over, with 1, when the guess is right."""
        said = guessing.answer(action, self._hidden)
        return (None, True, 1.0) if said is None else (said, False, 0.0)
