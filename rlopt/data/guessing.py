"""The embedded task of several turns: a hidden number is to be guessed. `environments.embedded` plays it.

The prompt is a range, `17-40:`. Each turn is a guess that a line break ends; the environment answers with `<` (it is lower) or
`>`, and ends the episode when the guess is right. The reward is 1 for that and 0 otherwise; `env.max_turns` bounds the guesses.

`tiny_guessing` is trained on `corpus`: some of its players halve what is left, some guess anything that is left, and some
anything at all. To halve is what reinforcement finds.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlopt.core.pieces import Pieces

CHARACTERS = "0123456789-:\n<>?"
"""Every character that an episode can hold."""

LARGEST, NARROW, WIDE = 99, 12, 40
"""The largest number, and the fewest and most numbers of a range."""

GUESSES = 5
"""What the players of `corpus` have, and `experiment=guessing` gives."""


@dataclass(frozen=True)
class Game:
    """A range, both ends included, and the number that is hidden in it."""

    low: int
    high: int
    hidden: int

    @property
    def text(self) -> str:
        return f"{self.low}-{self.high}:"


def answer(action: str, hidden: int) -> str | None:
    """What the environment says to a guess; None where it is right."""
    guess = action.removesuffix("\n")
    if not (guess.isascii() and guess.isdigit()):
        return "?"
    if int(guess) == hidden:
        return None
    return "<" if hidden < int(guess) else ">"


def draw_game(rng: random.Random) -> Game:
    """A range of 12 to 40 numbers, and one of them."""
    width = rng.randint(NARROW, WIDE)
    low = rng.randint(0, LARGEST + 1 - width)
    return Game(low, low + width - 1, rng.randrange(low, low + width))


def games(seed: int, count: int, held_out: bool = False) -> list[Game]:
    """`count` different games. Held-out and other games never share a range: a hash of it decides the side."""
    rng, chosen = random.Random(f"{seed}/{held_out}"), dict[Game, None]()
    while len(chosen) < count:
        game = draw_game(rng)
        if ((game.low * 100 + game.high) * 2654435761 % 2**32 % 10 == 0) == held_out:
            chosen[game] = None
    return list(chosen)


def corpus(rng: random.Random, halving_share: float, blind_share: float) -> Iterator[Pieces]:
    """Endless games to train a base model on, as pieces: (text, whether the policy wrote it).

    Args:
        rng: random numbers.
        halving_share: share of the players who guess the middle of what is left.
        blind_share: share of those who guess anything in the range; the others guess anything that is left.
    """
    while True:
        game, kind = draw_game(rng), rng.random()
        low, high, pieces = game.low, game.high, [(game.text, False)]
        for _ in range(GUESSES):
            if kind < halving_share:
                guess = (low + high) // 2
            elif kind < halving_share + blind_share:
                guess = rng.randint(game.low, game.high)
            else:
                guess = rng.randint(low, high)
            pieces.append((f"{guess}\n", True))
            said = answer(f"{guess}\n", game.hidden)
            if said is None:
                break
            pieces.append((said, False))
            low, high = (low, min(high, guess - 1)) if said == "<" else (max(low, guess + 1), high)
        while not pieces[-1][1]:
            pieces.pop()
        yield pieces
