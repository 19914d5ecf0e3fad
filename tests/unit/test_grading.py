"""The math reward: forms of one answer that are the same, and answers that are not."""

import json
from pathlib import Path

import pytest

from rlopt.grading import boxed, brevity, exact, mathematics
from rlopt.prompts import final_answer

SAME = [
    ("72", r"... is \boxed{72}"),
    ("72", "48+24=72\n#### 72"),
    ("72", "The answer is 72."),
    ("36", "**36**"),
    ("36", "$$36$$"),
    ("-5", r"\boxed{-5}"),
    # separators of thousands
    ("1234", r"\boxed{1,234}"),
    ("1000000", "1,000,000 people"),
    ("70000", r"\boxed{70{,}000}"),
    # fractions and decimals
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    ("0.5", r"\boxed{1/2}"),
    (r"\dfrac{3}{4}", "3/4"),
    ("2", r"\boxed{\frac{4}{2}}"),
    ("18", r"\boxed{\$18.00}"),
    # percent, degrees, units
    (r"50\%", r"\boxed{50}"),
    ("50", r"\boxed{50\%}"),
    ("90", r"\boxed{90^\circ}"),
    ("10", r"\boxed{10\text{ dollars}}"),
    (r"10 \text{ cm}^2", r"\boxed{10}"),
    # expressions, tuples, sets, words
    ("2x+3", r"\boxed{3+2x}"),
    ("x^2-1", r"\boxed{(x-1)(x+1)}"),
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
    (r"\frac{\pi}{2}", r"\boxed{\pi/2}"),
    ("(1,2)", r"\boxed{(1, 2)}"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ("x=3", r"\boxed{3}"),
    ("(A)", r"\boxed{\text{(A)}}"),
    (r"\text{Evelyn}", r"\boxed{Evelyn}"),
    ("10:30", r"\boxed{10:30}"),
    ("3", r"first \boxed{2}, no, \boxed{3}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    ("(5,100)", r"\boxed{(5, 100)}"),
    (r"1\text{ and }2", r"\boxed{1,2}"),
    (r"3\mathrm{i}", r"\boxed{3i}"),
    ("5", r"\fbox{5} and not 6"),
    (r"\$1,234", r"\boxed{1234}"),
]
DIFFERENT = [
    ("72", r"\boxed{73}"),
    ("72", ""),
    ("72", "no idea"),
    ("0", r"\boxed{}"),
    ("5", r"\boxed{-5}"),
    ("36", "36 or maybe 37"),
    ("2", r"first \boxed{2}, no, \boxed{3}"),
    ("1/3", r"\boxed{0.33}"),
    (r"\pi", r"\boxed{3.14}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    ("2,3", r"\boxed{2}"),
    ("2", r"\boxed{2\text{ and }3}"),
    (r"\text{Evelyn}", r"\boxed{\text{Bob}}"),
    (r"\text{even}", r"\boxed{\text{odd}}"),
    ("10:30", r"\boxed{10:45}"),
    ("3 hours 20 minutes", r"\boxed{3}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 7 \end{pmatrix}}"),
    (r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}", r"\boxed{\begin{pmatrix} -7 \\ 99 \\ 42 \end{pmatrix}}"),
    ("(0,100)", r"\boxed{100}"),
    ("(1,100)", r"\boxed{1100}"),
    (r"\{5,100\}", r"\boxed{5100}"),
    ("[0,100]", r"\boxed{[0100]}"),
    (r"2\text{ or }3", r"\boxed{23}"),
    (r"3\mathrm{i}", r"\boxed{3}"),
]


@pytest.mark.parametrize(("answer", "completion"), SAME)
def test_forms_of_one_answer_are_right(answer: str, completion: str) -> None:
    assert mathematics(completion=completion, answer=answer) == 1.0


@pytest.mark.parametrize(("answer", "completion"), DIFFERENT)
def test_other_answers_are_wrong(answer: str, completion: str) -> None:
    assert mathematics(completion=completion, answer=answer) == 0.0


def test_an_empty_answer_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="the answer is empty"):
        mathematics(completion="2", answer=" ")


def test_the_solutions_of_gsm8k_are_right_and_their_neighbours_wrong() -> None:
    rows = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "gsm8k.jsonl").read_text().splitlines()]
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
