"""Step pairs: from wrong answers to rows that prefer a right step over the first wrong one (Step-DPO, arXiv 2406.18629).

    answers -> wrong ones -> the first wrong step of each -> right continuations of the steps before it -> one row

`make_chunk` is the whole way for some prompts. It asks a `Tools` for everything that takes an engine or a user's function,
so nothing here knows how text is made or judged. Whatever does not become a row is counted by name (`MEANING`): nothing is
dropped silently. Departures from the paper: the step's number belongs to the step and not to the prefix, and a step's text
ends with its line break, so that prefix + step is the answer as it was sampled.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from rlopt.core.errors import RloptError
from rlopt.core.requests import Answer, Continuation
from rlopt.core.samples import Prompt, as_text
from rlopt.evaluation.pass_at_k import reaches

A = TypeVar("A")
B = TypeVar("B")

Row = dict[str, str]
"""The columns of Math-Step-DPO-10K. As there, `full_chosen` and `full_rejected` begin at the step, without the prefix."""

What = Literal[
    "prompts",
    "answers",
    "left_out",
    "right",
    "wrong",
    "no_wrong_step",
    "cut_off",
    "cut_later",
    "inside_token",
    "continuations",
    "right_continuations",
    "no_right_continuation",
    "no_step_there",
    "same_step",
    "chosen_wrong",
    "duplicate",
    "surplus",
    "rows_train",
    "rows_eval",
]

MEANING: dict[What, str] = {
    "prompts": "prompts gone through",
    "answers": "answers sampled",
    "left_out": "answers that the reward left out",
    "right": "answers right",
    "wrong": "answers wrong: each is dropped once below, or becomes a row",
    "no_wrong_step": "dropped: no wrong step found",
    "cut_off": "dropped: the length limit cut off their first wrong step",
    "cut_later": "wrong answers cut off later: used, but full_rejected is not whole",
    "inside_token": "dropped: the wrong step begins inside a token (see pairs.split)",
    "continuations": "continuations sampled for the others",
    "right_continuations": "continuations right and ended by the model",
    "no_right_continuation": "dropped: no right continuation",
    "no_step_there": "dropped: no step of a right continuation begins where the wrong one did",
    "same_step": "dropped: every right continuation begins with the rejected step",
    "chosen_wrong": "dropped: a wrong step up to the chosen one in every right continuation",
    "duplicate": "dropped: same prompt, prefix, chosen and rejected step as another row",
    "surplus": "dropped: pairs.count was reached",
    "rows_train": "rows to train on",
    "rows_eval": "rows to evaluate on",
}
"""Every count, in the order of the stages.

An answer is right, or unscored, or wrong; a wrong one is dropped once or becomes a row.
"""

FATES: tuple[What, ...] = ("no_right_continuation", "no_step_there", "same_step", "chosen_wrong")
"""Why a fault gives no row, for each of the four filters of continuations that leaves none."""


@dataclass(frozen=True)
class Recipe:
    """The settings that decide the rows, beside model, data and functions.

    Attributes:
        attempts: answers sampled per prompt.
        continuations: per wrong answer.
        right: the score at or above which an answer is right.
        seed: of the choice among right steps.
    """

    attempts: int
    continuations: int
    right: float
    seed: int


@dataclass(frozen=True)
class Fault:
    """A wrong answer to a prompt and the 0-based place `at` of its first wrong step.

    `begun` are the token ids before that step.
    """

    prompt: Prompt
    attempt: int
    steps: tuple[str, ...]
    at: int
    begun: tuple[int, ...]

    @property
    def prefix(self) -> str:
        return "".join(self.steps[: self.at])

    @property
    def rejected(self) -> str:
        return self.steps[self.at]

    @property
    def opening(self) -> Continuation:
        return Continuation(f"{self.prompt.id}/continuation/{self.attempt}", self.prompt.token_ids, self.begun)


class Tools(Protocol):
    """Engines and the user's functions. Every method takes many items and answers in their order."""

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        """`count` answers that continue each opening."""

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[float | None]:
        """The score of each answer; None where the reward leaves it out."""

    def split(self, texts: list[str]) -> list[list[str]]:
        """Each answer cut into steps; joined they are the answer."""

    def locate(self, answers: list[tuple[Prompt, list[str]]]) -> list[int | None]:
        """The 0-based place of each answer's first wrong step, or None."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""


@dataclass(frozen=True)
class Chunk:
    """What some prompts gave: rows, perhaps some twice, and counts of all that did not become one."""

    rows: list[Row]
    counts: Counter[What]


def make_chunk(prompts: list[Prompt], tools: Tools, recipe: Recipe) -> Chunk:
    """All stages for `prompts`; at most `attempts` rows of each, in their order.

    Raises:
        RloptError: an engine or a user's function failed.
    """
    counts: Counter[What] = Counter({"prompts": len(prompts)})
    faults = _find_faults(prompts, tools, recipe, counts)
    answers = tools.complete([fault.opening for fault in faults], recipe.continuations)
    scores = _over([[(fault.prompt, a.text) for a in group] for fault, group in zip(faults, answers, strict=True)], tools.grade)
    # Four filters of a fault's continuations: the right ones (one that was cut off is not a whole answer),
    # those in which a step begins where the wrong one did, one for each different step, those with a right step there.
    right = [
        [a.text for a, s in zip(*pair, strict=True) if s is not None and reaches(s, recipe.right) and a.finish == "stop"]
        for pair in zip(answers, scores, strict=True)
    ]
    begun = [_begun(fault, ways) for fault, ways in zip(faults, _over(right, tools.split), strict=True)]
    other = [_other(fault, ways) for fault, ways in zip(faults, begun, strict=True)]
    places = _over([[(fault.prompt, way) for way in ways] for fault, ways in zip(faults, other, strict=True)], tools.locate)
    sound = [
        [way for way, place in zip(ways, found, strict=True) if place is None or place > fault.at]
        for fault, ways, found in zip(faults, other, places, strict=True)
    ]
    rows = []
    for fault, ways, *left in zip(faults, sound, right, begun, other, sound, strict=True):
        if ways:
            rng = random.Random(f"{recipe.seed}/{fault.prompt.id}/choice/{fault.attempt}")
            rows.append(make_row(fault, rng.choice(ways)))
        else:
            counts[next(fate for fate, sieved in zip(FATES, left, strict=True) if not sieved)] += 1
    counts["continuations"] += sum(map(len, answers))
    counts["right_continuations"] += sum(map(len, right))
    return Chunk(rows, counts)


def _find_faults(prompts: list[Prompt], tools: Tools, recipe: Recipe, counts: Counter[What]) -> list[Fault]:
    """Sample answers and find the first wrong step of the wrong ones; `counts` has what became of them."""
    answers = tools.complete([Continuation(f"{prompt.id}/answer", prompt.token_ids, ()) for prompt in prompts], recipe.attempts)
    asked = [(prompt, i, answer) for prompt, group in zip(prompts, answers, strict=True) for i, answer in enumerate(group)]
    scores = tools.grade([(prompt, answer.text) for prompt, _, answer in asked])
    wrong = [one for one, score in zip(asked, scores, strict=True) if score is not None and score < recipe.right]
    left_out = sum(score is None for score in scores)
    counts.update(answers=len(asked), left_out=left_out, right=len(asked) - left_out - len(wrong), wrong=len(wrong))
    steps = tools.split([answer.text for _, _, answer in wrong])
    # An empty answer has no step that could be rejected, so it is not located.
    places = _over([[(prompt, s)] if s else [] for (prompt, _, _), s in zip(wrong, steps, strict=True)], tools.locate)
    found = [
        find_fault(*one, s, place[0] if place else None, tools.decode)
        for one, s, place in zip(wrong, steps, places, strict=True)
    ]
    counts.update(fate for fate in found if not isinstance(fate, Fault))
    counts["cut_later"] += sum(
        isinstance(fault, Fault) and answer.finish == "length" for fault, (_, _, answer) in zip(found, wrong, strict=True)
    )
    return [fault for fault in found if isinstance(fault, Fault)]


def find_fault(
    prompt: Prompt, attempt: int, answer: Answer, steps: list[str], at: int | None, decode: Callable[[Sequence[int]], str]
) -> Fault | What:
    """The fault of a wrong answer whose first wrong step is `at`, or why it cannot be used.

    Of an answer that the length limit ended, the last step may be half a step: it is not rejected. An earlier one is
    whole, and is; only `full_rejected` then ends where the limit was.
    """
    if at is None:
        return "no_wrong_step"
    if answer.finish == "length" and at == len(steps) - 1:
        return "cut_off"
    begun = cut(answer.token_ids, "".join(steps[:at]), decode)
    return "inside_token" if begun is None else Fault(prompt, attempt, tuple(steps), at, begun)


def cut(token_ids: tuple[int, ...], text: str, decode: Callable[[Sequence[int]], str]) -> tuple[int, ...] | None:
    """The first of `token_ids` whose text is `text`, which their text begins with; None when it ends inside a token."""
    count = bisect_left(range(len(token_ids)), len(text), key=lambda n: len(decode(token_ids[:n])))
    return token_ids[:count] if decode(token_ids[:count]) == text else None


def _begun(fault: Fault, ways: list[list[str]]) -> list[list[str]]:
    """Those of the answers `ways`, as steps, in which a step begins where the wrong one did."""
    return [steps for steps in ways if len(steps) > fault.at and "".join(steps[: fault.at]) == fault.prefix]


def _other(fault: Fault, ways: list[list[str]]) -> list[list[str]]:
    """The first answer of `ways` for each step that is not the rejected one, spaces at its ends aside."""
    different: dict[str, list[str]] = {}
    for steps in ways:
        if steps[fault.at].strip() != fault.rejected.strip():
            different.setdefault(steps[fault.at].strip(), steps)
    return list(different.values())


def make_row(fault: Fault, chosen: list[str]) -> Row:
    """The row that prefers `chosen`, a right answer as steps with the fault's prefix, at the fault."""
    return {
        "dataset": fault.prompt.source,
        "prompt": fault.prompt.text,
        "initial_reason_steps": fault.prefix,
        "chosen": chosen[fault.at],
        "rejected": fault.rejected,
        "full_chosen": "".join(chosen[fault.at :]),
        "full_rejected": "".join(fault.steps[fault.at :]),
        "answer": as_text(fault.prompt.answer),
    }


def check_steps(name: str, text: str, steps: object) -> list[str]:
    """What the function `name` made of `text`, if it is what was asked for."""
    if isinstance(steps, list) and all(isinstance(s, str) and s for s in steps) and "".join(steps) == text:
        return steps
    raise RloptError(f"pairs.split={name} returned {steps!r} for {text!r}; want a list of steps, none empty, that join to it")


def check_place(name: str, steps: list[str], at: object) -> int | None:
    """Where the function `name` found the first wrong one of `steps`, if it is a place there."""
    if at is None or (isinstance(at, int) and not isinstance(at, bool) and 0 <= at < len(steps)):
        return at
    raise RloptError(f"pairs.locate={name} returned {at!r} for {steps!r}; want an index from 0, or None for no wrong step")


def _over(groups: Iterable[list[A]], function: Callable[[list[A]], list[B]]) -> list[list[B]]:
    """`function` over all items of all groups in one call; its answers in groups again."""
    groups = list(groups)
    answers = iter(function([item for group in groups for item in group]))
    return [[next(answers) for _ in group] for group in groups]
