"""The math reward: where an answer stands, what it says, whether two are equal; and all of it on a table of pairs."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from rlopt.data.columns import final_answer
from rlopt.rewards.answers import find, spoken
from rlopt.rewards.equality import equal
from rlopt.rewards.latex import boxes
from rlopt.rewards.math import boxed, brevity, exact, mathematics, mathematics_boxed, mathematics_marked
from rlopt.rewards.notation import normal
from rlopt.rewards.quantities import Quantity, quantity

DATA = Path(__file__).parents[1] / "data"
PAIRS = [json.loads(line) for line in (DATA / "grading.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_table_has_many_pairs_of_every_kind_right_ones_and_wrong_ones() -> None:
    assert len(PAIRS) >= 500
    assert len({(pair["answer"], pair["completion"]) for pair in PAIRS}) == len(PAIRS)
    kinds = Counter((pair["kind"], pair["right"]) for pair in PAIRS)
    assert all(kinds[kind, True] and kinds[kind, False] for kind, _ in kinds)


@pytest.mark.parametrize("kind", dict.fromkeys(pair["kind"] for pair in PAIRS))
def test_every_pair_of_the_table_has_its_verdict(kind: str) -> None:
    wrong = [
        pair
        for pair in PAIRS
        if pair["kind"] == kind and mathematics(completion=pair["completion"], answer=pair["answer"]) != pair["right"]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"first \boxed{2}, no, \boxed{3}", "3"),
        (r"\boxed{7}. Wait: \boxed{8", None),
        ("<think>\\boxed{5}</think>It is 6.", "6"),
        ("a \\boxed{5}</think> b", "b"),
        ("<think>\\boxed{5}", None),
        ("\\boxed{1}\n#### 2\nThe answer is 3.", "1"),
        ("#### 2\nThe answer is 3.", "2"),
        ("#### Step 2\nThe answer is 3.", "3"),
        ("The answer is 3.\nThat is **4**.", "3"),
        ("Of the two, it is surely\n\n**four**", "four"),
        ("First 3.\nThen 4 and 5.\nDone.", "5"),
        ("nothing\nat all", None),
    ],
)
def test_the_first_in_the_order_is_the_answer(completion: str, answer: str | None) -> None:
    assert find(completion) == answer


def test_thoughts_are_removed_and_the_last_answer_is_kept() -> None:
    assert spoken("a<think>b</think>c<think>d</think>e") == "ace"
    assert spoken("a<think>b<think>c</think>d</think>e") == "ae"
    assert spoken("a</think>b") == "b"
    assert spoken("a<think>b") == "a"
    assert spoken("x<answer>1</answer>y<answer>2</answer>z") == "2"


def test_a_stricter_reward_pays_less() -> None:
    completions = (r"\boxed{7}", "#### 7", "The answer is 7.", "so 3 + 4 makes 7")
    rewards = (mathematics, mathematics_marked, mathematics_boxed)
    assert [[reward(completion=text, answer="7") for text in completions] for reward in rewards] == [
        [1, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("½", r"\frac{1}{2}"),
        (r"\left( 1,\, 2 \right)", "( 1, 2 )"),
        ("x²⁺¹", "x^{2+1}"),
        (r"10,\!080", "10080"),
        ("**$5$**.", "5"),
        (r"8\quad\text{cm}", "8 ⟨cm⟩"),
        ("\uff08\uff11\uff0c\uff12\uff09", "(1,2)"),
    ],
)
def test_one_notation_for_what_has_many(text: str, written: str) -> None:
    assert normal(text) == written


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-4.5e-3", Quantity(Fraction(-9, 2000), None, False)),
        ("2 1/3", Quantity(Fraction(7, 3), None, False)),
        (r"\$1,234", Quantity(Fraction(1234), "dollar", True)),
        ("5 million", Quantity(Fraction(5_000_000), None, True)),
        ("12 cm²", Quantity(Fraction(12), "centimeter^2", True)),
        (r"12\ \mathrm{m/s}", Quantity(Fraction(12), "meter/second", True)),
        (r"25^\circ\text{C}", Quantity(Fraction(25), "degree celsius", True)),
        ("1,234", Quantity(Fraction(1234), None, True)),
        ("3y", None),
        ("2, 3", None),
        ("9 p.m.", None),
        ("1e99999", None),
    ],
)
def test_a_number_is_read_with_its_unit(text: str, number: Quantity | None) -> None:
    assert quantity(normal(text), thousands=True) == number


def test_three_digits_after_a_comma_are_a_number_of_their_own_unless_something_says_otherwise() -> None:
    assert quantity("300,500", thousands=False) is None
    assert quantity("10,080", thousands=False) == Quantity(Fraction(10080), None, True)
    assert equal("300500", "300500 apples")


@pytest.mark.parametrize(
    "said",
    [
        "9^{9^{9^9}}",
        "99999!",
        "(x+1)^{9999}",
        "1e99999",
        "9" * 100_000,
        "{" * 5000 + "5" + "}" * 5000,
        "(" * 3000,
        ",".join("1" * 5000),
        r"\frac{1}{" * 200 + "2" + "}" * 200,
        "\\text{" * 20_000,
    ],
)
def test_no_solution_text_raises(said: str) -> None:
    assert [mathematics(completion=rf"\boxed{{{said}}}", answer=answer) for answer in ("7", r"\frac{x}{2}", "1, 2")] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "piece", ["1", "1,", "12 ", "个", "5万", "答案", " ", "*", "ответ ", "the answer to ", "ab ", "<think>", "####"]
)
@pytest.mark.parametrize("opening", ["", "答案", "The answer", "5"])
def test_a_long_text_is_read_in_a_few_passes(opening: str, piece: str) -> None:
    """One that took time by the square of its length would take minutes."""
    assert mathematics(completion=opening + piece * (200_000 // len(piece)), answer="7") == 0.0


def test_boxes_are_found_in_one_pass() -> None:
    assert boxes(r"\boxed{a} \fbox{\{1\}} \boxed 2$ \boxed{\boxed{3}} \boxedx{4} } \boxed{5} \boxed{6") == [
        "a",
        r"\{1\}",
        "2",
        "3",
        "5",
    ]
    steps = 0

    class Counted(str):
        """A text that counts how often it is cut."""

        __slots__ = ()

        def __getitem__(self, place: object) -> str:
            nonlocal steps
            steps += 1
            return super().__getitem__(place)  # type: ignore[index]

    assert boxes(Counted("\\boxed{" * 2000)) == []
    assert boxes(Counted("\\boxed{1}" * 2000)) == ["1"] * 2000
    assert steps <= 4000


def test_any_answer_of_a_list_is_right() -> None:
    assert mathematics(r"\boxed{0.5}", ["7", r"\frac12"]) == mathematics_boxed(r"\boxed{8}", [7, 8]) == 1.0
    assert mathematics(r"\boxed{0.5}", ["7", r"\frac13"]) == 0.0
    assert (exact("b ", ["a", "b"]), exact("c", ["a", "b"])) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"the answer is a mapping of target; name what is right in it by data.answer_key"):
        mathematics(r"\boxed{1}", {"target": ["1"]})


def test_an_empty_answer_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="the answer is empty"):
        mathematics(completion="2", answer=" ")


def test_the_solutions_of_gsm8k_are_right_and_their_neighbours_wrong() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k.jsonl").read_text().splitlines()]
    assert len(rows) == 64
    for row in rows:
        answer = final_answer(row["answer"], "hash")
        other = str(int(answer) + 1)
        assert mathematics(completion=row["answer"], answer=answer) == 1.0, row
        assert (
            mathematics(completion=row["answer"].rpartition("####")[0] + rf"So it is \boxed{{{answer}}}.", answer=answer) == 1.0
        )
        assert mathematics(completion=row["answer"], answer=other) == 0.0, row


def test_rewards_that_are_not_of_mathematics() -> None:
    assert (exact(completion=" yes\n", answer="yes"), exact(completion="yes!", answer="yes")) == (1.0, 0.0)
    assert [boxed(completion=text) for text in (r"\boxed{1}", "1", r"\boxed{1} \boxed{2}")] == [1.0, 0.0, 0.0]
    assert [brevity(completion="x" * n) for n in (0, 1000, 3000)] == [1.0, 0.5, 0.25]
