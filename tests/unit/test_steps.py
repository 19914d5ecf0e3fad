"""From wrong answers to rows at the first wrong step, worked by hand with answers written out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlopt.core.errors import RloptError
from rlopt.core.requests import Answer, Continuation
from rlopt.core.samples import Prompt
from rlopt.data import arithmetic
from rlopt.step_pairs.files import ChunkStore, PairWriter, on_eval_side
from rlopt.step_pairs.mining import MEANING, Chunk, Recipe, Row, check_place, check_steps, cut, find_fault, make_chunk

END = 0


def ids(text: str) -> tuple[int, ...]:
    """One token a character, as the built-in models have it."""
    return tuple(map(ord, text))


def decode(token_ids: Sequence[int]) -> str:
    return "".join(chr(token) for token in token_ids if token != END)


def prompt(text: str, name: str = "p") -> Prompt:
    return Prompt(name, ids(text), text, str(arithmetic.Problem.parse(text).answer), "by hand")


def said(text: str) -> Answer:
    return Answer((*ids(text), END), text, "stop")


def cut_off(text: str) -> Answer:
    return Answer(ids(text), text, "length")


class Script:
    """Tools that read their answers from a script: `openings` by what stands already, everything else as arithmetic has it."""

    def __init__(self, answers: list[Answer], continuations: dict[str, list[Answer]]) -> None:
        self.answers, self.continuations = answers, continuations
        self.asked: list[Continuation] = []
        self.located: list[list[str]] = []

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        self.asked += openings
        if all(opening.id.endswith("/answer") for opening in openings):
            return [self.answers for _ in openings]
        return [self.continuations[decode(opening.begun)] for opening in openings]

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[float | None]:
        return [None if text == "?" else arithmetic.reward(p.text, text, p.answer) for p, text in answers]

    def split(self, texts: list[str]) -> list[list[str]]:
        return [arithmetic.split_steps(text) for text in texts]

    def locate(self, answers: list[tuple[Prompt, list[str]]]) -> list[int | None]:
        self.located += [steps for _, steps in answers]
        return [arithmetic.locate(p.text, steps, p.answer) for p, steps in answers]

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode(token_ids)


TASK = prompt("12+7*3+5=")
RIGHT = "Step 1: 7*3=21\nStep 2: 12+21=33\nStep 3: 33+5=38\nAnswer: 38"
WRONG = "Step 1: 7*3=21\nStep 2: 12+21=34\nStep 3: 34+5=39\nAnswer: 39"
PREFIX = "Step 1: 7*3=21\n"
RECIPE = Recipe(attempts=2, continuations=2, right=1.0, seed=1)


def make(answers: list[Answer], continuations: dict[str, list[Answer]]) -> tuple[list[Row], dict[str, int]]:
    chunk = make_chunk([TASK], Script(answers, continuations), RECIPE)
    return chunk.rows, {what: count for what, count in chunk.counts.items() if count}


def test_a_wrong_answer_and_a_right_continuation_of_the_steps_before_its_first_wrong_one_make_a_row() -> None:
    script = Script([said(RIGHT), said(WRONG)], {PREFIX: [said(WRONG), said(RIGHT)]})
    chunk = make_chunk([TASK], script, RECIPE)
    assert chunk.rows == [
        {
            "dataset": "by hand",
            "prompt": "12+7*3+5=",
            "initial_reason_steps": "Step 1: 7*3=21\n",
            "chosen": "Step 2: 12+21=33\n",
            "rejected": "Step 2: 12+21=34\n",
            "full_chosen": "Step 2: 12+21=33\nStep 3: 33+5=38\nAnswer: 38",
            "full_rejected": "Step 2: 12+21=34\nStep 3: 34+5=39\nAnswer: 39",
            "answer": "38",
        }
    ]
    assert {what: count for what, count in chunk.counts.items() if count} == {
        "prompts": 1,
        "answers": 2,
        "right": 1,
        "wrong": 1,
        "continuations": 2,
        "right_continuations": 1,
    }
    assert script.asked == [
        Continuation("p/answer", ids("12+7*3+5="), ()),
        Continuation("p/continuation/1", ids("12+7*3+5="), ids(PREFIX)),
    ]


def test_a_wrong_first_step_leaves_an_empty_prefix_and_the_answer_is_a_step_too() -> None:
    rows, _ = make([said("Answer: 37")], {"": [said(RIGHT)]})
    assert (rows[0]["initial_reason_steps"], rows[0]["chosen"], rows[0]["rejected"]) == ("", PREFIX, "Answer: 37")
    slipped = RIGHT.removesuffix("38") + "83"
    rows, _ = make([said(slipped)], {RIGHT.removesuffix("Answer: 38"): [said(RIGHT)]})
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("Answer: 38", "Answer: 83")


@pytest.mark.parametrize(
    ("answer", "continuations", "what"),
    [
        (said("?"), {}, "left_out"),
        (said(""), {}, "no_wrong_step"),
        (cut_off("Step 1: 7*3=21\nStep 2: 12+2"), {}, "cut_off"),
        (said(WRONG), {PREFIX: [said(WRONG)]}, "no_right_continuation"),
        (said(WRONG), {PREFIX: [cut_off(RIGHT)]}, "no_right_continuation"),  # right so far, but no whole answer
        (said(WRONG), {PREFIX: [said("Answer: 38")]}, "no_step_there"),  # what stood before is not in it
        (said(WRONG), {PREFIX: [said(PREFIX + "Step 2: 12+21=34\nAnswer: 38")]}, "same_step"),
        (said(WRONG), {PREFIX: [said(PREFIX + "Step 2: 12+21=35\nAnswer: 38")]}, "chosen_wrong"),
    ],
)
def test_what_makes_no_row_is_counted_by_its_reason(answer: Answer, continuations: dict[str, list[Answer]], what: str) -> None:
    rows, counts = make([answer], continuations)
    assert not rows
    assert counts[what] == 1


def test_a_reason_is_that_of_the_continuation_that_came_furthest() -> None:
    ways = [said(WRONG), said(PREFIX + "Step 2: 12+21=34\nAnswer: 38"), said(PREFIX + "Step 2: 12+21=35\nAnswer: 38")]
    _, counts = make([said(WRONG)], {PREFIX: ways})
    assert counts["chosen_wrong"] == 1
    assert "same_step" not in counts
    assert "no_right_continuation" not in counts


def test_a_later_wrong_step_of_a_right_continuation_does_no_harm_to_the_chosen_one() -> None:
    rows, _ = make([said(WRONG)], {PREFIX: [said(PREFIX + "Step 2: 12+21=33\nStep 3: 33+5=40\nAnswer: 38")]})
    assert rows[0]["chosen"] == "Step 2: 12+21=33\n"


def test_an_answer_cut_off_after_its_first_wrong_step_is_of_use_and_counted() -> None:
    rows, counts = make([cut_off("Step 1: 7*3=21\nStep 2: 12+21=34\nStep 3: 3")], {PREFIX: [said(RIGHT)]})
    assert (rows[0]["rejected"], rows[0]["full_rejected"]) == ("Step 2: 12+21=34\n", "Step 2: 12+21=34\nStep 3: 3")
    assert counts["cut_later"] == 1


def test_each_different_step_is_located_once_and_one_of_them_is_chosen_by_the_seed() -> None:
    task = prompt("2+3=")
    ways = [said("Step 1: 2+3=5\nAnswer: 5"), said("Answer: 5"), said("Step 1: 2+3=5\nAnswer: 5")]
    chosen = set()
    for seed in range(20):
        script = Script([said("Answer: 6")], {"": ways})
        first = make_chunk([task], script, Recipe(1, 3, 1.0, seed)).rows
        assert first == make_chunk([task], script, Recipe(1, 3, 1.0, seed)).rows
        assert script.located[1:3] == [["Step 1: 2+3=5\n", "Answer: 5"], ["Answer: 5"]]
        chosen.add(first[0]["chosen"])
    assert chosen == {"Step 1: 2+3=5\n", "Answer: 5"}


def test_all_answers_left_out_right_or_wrong_and_all_wrong_ones_dropped_once_or_rows() -> None:
    answers = [said(RIGHT), said(WRONG), said("?"), said("Answer: 1"), cut_off("Step"), said("")]
    chunk = make_chunk([TASK], Script(answers, {PREFIX: [said(RIGHT)], "": [said(WRONG)]}), RECIPE)
    ledger = PairWriter(count=10, eval_share=0.0)
    ledger.add(chunk)
    c = ledger.counts
    assert c["answers"] == 6 == c["left_out"] + c["right"] + c["wrong"]
    dropped = [what for what, meaning in MEANING.items() if meaning.startswith("dropped")]
    assert c["wrong"] == 4 == sum(c[what] for what in dropped) + c["rows_train"] + c["rows_eval"]


def test_the_prefix_is_cut_from_the_tokens_that_were_sampled_and_never_encoded_again() -> None:
    pieces = {1: "Step 1", 2: ": 7*3=21\n", 3: "Step", 4: " 2\n", 5: "", 6: "1\nStep"}
    sampled = (1, 2, 3, 4, 5)

    def words(token_ids: Sequence[int]) -> str:
        return "".join(pieces[token] for token in token_ids)

    assert cut(sampled, "", words) == ()
    assert cut(sampled, "Step 1: 7*3=21\n", words) == (1, 2)
    assert cut(sampled, "Step 1: 7*3=21\nStep 2\n", words) == (1, 2, 3, 4)
    assert cut((1, 6), "Step 11\n", words) is None  # the second token goes on into the next step
    wrong = Answer((1, 6), "Step 11\nStep", "stop")
    assert find_fault(TASK, 0, wrong, ["Step 11\n", "Step"], 1, words) == "inside_token"


def row(name: str, chosen: str = "b") -> Row:
    return {"prompt": name, "initial_reason_steps": "", "chosen": chosen, "rejected": "a"}


def test_no_row_occurs_twice_and_what_comes_after_the_last_one_wanted_is_counted() -> None:
    ledger = PairWriter(count=3, eval_share=0.0)
    ledger.add(Chunk([row("1+1="), row("1+1=", "c"), row("1+1=")], Counter()))
    assert (ledger.rows, ledger.full, ledger.counts["duplicate"]) == (2, False, 1)
    ledger.add(Chunk([row("1+1="), row("2+2="), row("3+3="), row("2+2=")], Counter()))
    assert ledger.full
    assert [r["prompt"] for r in ledger.train] == ["1+1=", "1+1=", "2+2="]
    assert (ledger.counts["duplicate"], ledger.counts["surplus"], ledger.counts["rows_train"]) == (3, 1, 3)


def test_a_prompt_has_all_its_rows_on_one_side_and_the_share_is_as_asked() -> None:
    prompts = [problem.text for problem in arithmetic.problems(1, 2000)]
    ledger = PairWriter(count=10_000, eval_share=0.2)
    ledger.add(Chunk([row(p, chosen) for chosen in "bc" for p in prompts], Counter()))
    sides = {r["prompt"] for r in ledger.train}, {r["prompt"] for r in ledger.eval}
    assert not sides[0] & sides[1]
    assert 0.17 < len(sides[1]) / 2000 < 0.23
    assert not any(on_eval_side(p, 0.0) for p in prompts)


@pytest.mark.parametrize("steps", [["Step 1"], ["Step 1\n", ""], "Step 1\n", ["Step 1\n", 2], None])
def test_steps_that_do_not_join_to_the_answer_are_refused_by_name(steps: object) -> None:
    with pytest.raises(RloptError, match="pairs.split=mine:cut returned .* want a list of steps, none empty, that join to it"):
        check_steps("mine:cut", "Step 1\n", steps)


@pytest.mark.parametrize("at", [2, -1, 0.0, True, "1"])
def test_a_place_that_is_not_a_step_is_refused_by_name(at: object) -> None:
    with pytest.raises(RloptError, match="pairs.locate=mine:find returned .* want an index from 0, or None for no wrong step"):
        check_place("mine:find", ["a", "b"], at)


def test_a_step_of_the_embedded_task_is_a_line_with_its_break_and_locate_counts_from_0() -> None:
    for text in ("", "\n", "Answer: 3", RIGHT, RIGHT + "\n", "a\n\nb"):
        assert "".join(arithmetic.split_steps(text)) == text
    assert arithmetic.split_steps(PREFIX + "Answer: 38") == [PREFIX, "Answer: 38"]
    for text, at in ((RIGHT, None), (WRONG, 1), ("Answer: 37", 0), (PREFIX + "Answer: 38", 1), (PREFIX + "Step 2", 1)):
        assert arithmetic.locate(TASK.text, arithmetic.split_steps(text), "38") == at


def test_rows_that_could_not_be_written_are_refused_before_any_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RloptError, match=r"^pairs.out=.*rows.jsonl: cannot be written \(.*\); choose another place"):
        ChunkStore(tmp_path / "file" / "rows.jsonl").claim({})
