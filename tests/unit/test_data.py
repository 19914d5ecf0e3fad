"""Reading prompts and dealing them."""

from pathlib import Path

import pytest
from builders import prompt

from rlopt.config import DataConfig
from rlopt.data import Dealer, load_prompts, sample_seed
from rlopt.errors import RloptError


class Letters:
    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def config(train: Path | str, prompt_key: str | None = None) -> DataConfig:
    return DataConfig(
        train=str(train),
        eval=None,
        size=10,
        experience=None,
        experience_share=1.0,
        prompts_per_step=2,
        prompt_key=prompt_key,
        answer_key=None,
        invalid_rows="refuse",
    )


def test_an_epoch_deals_every_row_once_and_the_next_in_another_order() -> None:
    dealer = Dealer(10, per_step=4, seed=7)
    dealt = [place for batch in range(1, 6) for place in dealer.rows(batch)]
    first, second = [[row for row, e in dealt if e == epoch] for epoch in (0, 1)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    forward = Dealer(10, 4, seed=7)
    for batch in (1, 2, 3):
        forward.rows(batch)
    assert forward.rows(9) == Dealer(10, 4, seed=7).rows(9)
    assert forward.rows(9) != Dealer(10, 4, seed=8).rows(9)


def test_spares_are_drawn_anew_for_every_place_and_named_apart_from_the_deal() -> None:
    prompts = [prompt(str(i)) for i in range(10)]
    deals = Dealer(10, 4, seed=7).deals(2, prompts, refills=3)
    assert [len(deal.spares) for deal in deals] == [3] * 4
    draws = [spare.draw for deal in deals for spare in deal.spares]
    assert len(set(draws)) == 12
    assert {deal.draw for deal in deals} == {"0"}
    assert len({spare.prompt.id for deal in deals for spare in deal.spares}) > 3
    assert Dealer(10, 4, seed=7).deals(2, prompts, refills=0)[0].spares == ()


def test_every_sample_has_a_seed_of_its_own() -> None:
    seeds = {sample_seed(s, p, e, i) for s in (1, 2) for p in ("a", "b") for e in ("0", "1") for i in range(8)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("row", ['{"question": "1+1", "answer": "2"}', '{"prompt": "1+1", "answer": 2}'])
def test_rows_may_call_their_prompt_prompt_or_question(tmp_path: Path, row: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(row + "\n\n")
    (only,) = load_prompts(config(file), 0, Letters(), 100)
    assert (only.id, only.text, only.answer, only.token_ids) == ("rows.jsonl:1", "1+1", "2", (49, 43, 49))


def test_another_column_is_taken_when_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"problem": "1+1", "answer": "2"}')
    assert load_prompts(config(file, "problem"), 0, Letters(), 100)[0].text == "1+1"
    with pytest.raises(
        RloptError, match=r"row 1 has no text under 'prompt', only \['answer', 'problem'\]; set data.prompt_key"
    ):
        load_prompts(config(file), 0, Letters(), 100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file has no rows"),
        ("\n\n", "the file has no rows"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt"', "row 2 is not JSON"),
        ('{"prompt": "a" }', "row 1 has no text under 'answer'"),
        ('{"prompt": "abcdef", "answer": "b"}', "has 6 tokens and the model has room for 5"),
    ],
)
def test_a_bad_file_is_refused_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(RloptError, match=message):
        load_prompts(config(file), 0, Letters(), 5)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(RloptError, match="data.train=/nowhere: no such file"):
        load_prompts(config("/nowhere"), 0, Letters(), 5)
