"""Recorded rows: what becomes of them, and which are refused by number."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import data_config

from rlopt.core.errors import RloptError
from rlopt.data.preferences import Loaded, load_examples
from rlopt.data.wording import Wording, wording

STEP = {
    "prompt": "1+2*3=",
    "initial_reason_steps": "2*3=6\n",
    "chosen": "1+6=7\n",
    "rejected": "1+6=8\n",
    "full_chosen": "1+6=7\nAnswer: 7",
    "full_rejected": "1+6=8\nAnswer: 8",
    "answer": "7",
}


class Letters:
    """A token a letter; the end token is 0."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


class Pairs(Letters):
    """Merges a newline with a 1 that follows it, as a real tokenizer may."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text.replace("\n1", "§")]


def load(
    folder: Path, rows: str, *content: dict[str, Any], drop: bool = False, tokenizer: Letters | None = None, **keys: Any
) -> Loaded:
    file = folder / "rows.jsonl"
    file.write_text(encoding="utf-8", data="".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    config = data_config(train=str(file), invalid_rows="drop" if drop else "refuse", **keys)
    return load_examples("data.train", config, rows, plain(tokenizer or Letters()), 60, seed=1)  # type: ignore[arg-type]


def plain(tokenizer: Letters) -> Wording:
    return wording(data_config(), tokenizer)


def embedded(key: str, size: int) -> Loaded:
    config = data_config(train="arithmetic", eval="arithmetic", size=size)
    return load_examples(key, config, "answers", plain(Letters()), 200, seed=1)  # type: ignore[arg-type]


def text(ids: tuple[int, ...]) -> str:
    return "".join(chr(i) if i else "<end>" for i in ids)


def test_a_step_is_scored_alone_after_prompt_and_prefix_and_without_an_end(tmp_path: Path) -> None:
    (example,) = load(tmp_path, "step_pairs", STEP).examples
    assert text(example.prompt.token_ids) == example.prompt.text == "1+2*3=2*3=6\n"
    assert [text(answer) for answer in example.answers] == ["1+6=7\n", "1+6=8\n"]


def test_dpo_scores_the_whole_answers_of_the_same_rows_with_their_end(tmp_path: Path) -> None:
    (example,) = load(tmp_path, "pairs", STEP).examples
    assert text(example.prompt.token_ids) == "1+2*3="
    assert [text(answer) for answer in example.answers] == ["2*3=6\n1+6=7\nAnswer: 7<end>", "2*3=6\n1+6=8\nAnswer: 8<end>"]


def test_rows_as_in_trl_are_taken_as_they_are(tmp_path: Path) -> None:
    (example,) = load(tmp_path, "pairs", {"prompt": "a", "chosen": "b", "rejected": "c"}).examples
    assert [text(answer) for answer in example.answers] == ["b<end>", "c<end>"]


def test_an_answer_to_imitate_may_have_any_of_three_names_and_ends_once(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "answers",
        {"prompt": "a", "completion": "b\0"},
        {"question": "a", "answer": "c"},
        {"prompt": "a", "response": "d"},
    )
    assert [text(example.answers[0]) for example in loaded.examples] == ["b<end>", "c<end>", "d<end>"]


def test_the_embedded_task_has_worked_answers_to_imitate() -> None:
    loaded = embedded("data.train", 5)
    assert len(loaded.examples) == 5
    assert "Answer: " in text(loaded.examples[0].answers[0])


BAD = {
    "rejected is empty": {"rejected": " "},
    "chosen and rejected are equal": {"rejected": STEP["chosen"], "full_rejected": STEP["full_chosen"]},
    "initial_reason_steps does not end where the step begins: full_chosen does not begin with chosen": {"full_chosen": "9"},
    "prompt is empty": {"prompt": ""},
    "chosen is not text": {"chosen": 7},
    "more than 60 tokens": {"prompt": "1" * 60},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_cannot_be_used_is_refused_by_its_number(tmp_path: Path, reason: str) -> None:
    with pytest.raises(RloptError) as refusal:
        load(tmp_path, "step_pairs", STEP, STEP | BAD[reason])
    assert f"1 of 2 rows are unusable (row 2: {reason}); mend them, or data.invalid_rows=drop" in str(refusal.value)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(
        RloptError, match=r"row 1: no text under 'initial_reason_steps', only \['chosen', 'prompt', 'rejected'\]"
    ):
        load(tmp_path, "step_pairs", {"prompt": "a", "chosen": "b", "rejected": "c"})


def test_a_token_that_reaches_across_the_boundary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="row 1: a token reaches from initial_reason_steps into chosen"):
        load(tmp_path, "step_pairs", STEP, tokenizer=Pairs())


def test_rows_to_be_dropped_are_counted_by_reason(tmp_path: Path) -> None:
    loaded = load(tmp_path, "step_pairs", STEP, *[STEP | row for row in BAD.values()], STEP | {"rejected": ""}, drop=True)
    assert len(loaded.examples) == 1
    assert sum(map(len, loaded.dropped.values())) == 7
    assert loaded.dropped["rejected is empty"] == [2, 8]


def test_when_no_row_is_left_the_reasons_are_given(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match=r"none of 1 rows can be used \(rejected is empty\)"):
        load(tmp_path, "step_pairs", STEP | {"rejected": ""}, drop=True)


def test_what_is_not_a_json_object_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for line, message in (("[1]", "row 1 is not a JSON object"), ("{", "row 1 is not JSON")):
        file.write_text(line + "\n")
        with pytest.raises(RloptError, match=message):
            load_examples("data.train", data_config(train=str(file)), "pairs", plain(Letters()), 60, seed=1)


@pytest.mark.parametrize(("rows", "row", "message"), [
    ("answers", {"prompt": "a", "completion": "~"}, "an answer has no token that the tokenizer knows"),
    ("answers", {"prompt": "~", "completion": "a"}, "prompt has no token that the tokenizer knows"),
    ("pairs", {"prompt": "a", "chosen": "b", "rejected": "b\0"}, "chosen and rejected are the same tokens"),
])  # fmt: skip
def test_text_that_is_nothing_or_nothing_else_to_the_tokenizer_is_refused(
    tmp_path: Path, rows: str, row: dict[str, str], message: str
) -> None:
    class Blind(Letters):
        """Does not know the tilde."""

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text.replace("~", ""))

    with pytest.raises(RloptError, match=message):
        load(tmp_path, rows, row, tokenizer=Blind())


def test_sides_may_be_messages_where_the_prompt_is_a_conversation(tmp_path: Path) -> None:
    said = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "b"), ("rejected", "c"))}
    (example,) = load(tmp_path, "pairs", {"prompt": [{"role": "user", "content": "a"}], **said}).examples
    assert [text(ids) for ids in (example.prompt.token_ids, *example.answers)] == ["a", "b<end>", "c<end>"]


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[place % 2], "content": one} for place, one in enumerate(texts)]


SYSTEM = {"role": "system", "content": "s"}
IGNORED, EARLIER = (
    "ignored columns: prompt_id",
    "1 of 1 prompts have answers in them, which are not learned: only the last one is",
)


@pytest.mark.parametrize(("row", "prompt", "notes"), [
    ({"messages": said("a", "b")}, "a", ()),
    ({"messages": [SYSTEM, *said("a", "c", "d", "b")]}, "s\n\na\n\nc\n\nd", (EARLIER,)),
    ({"prompt": "a", "prompt_id": "1", "messages": said("a", "b")}, "a", (IGNORED,)),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a", ()),
    ({"conversations": said("a", "b")}, "a", ()),
    ({"prompt": said("a"), "completion": [{"role": "assistant", "content": "b"}]}, "a", ()),
])  # fmt: skip
def test_of_a_conversation_the_last_message_is_learned_and_the_others_are_its_prompt(
    tmp_path: Path, row: dict[str, Any], prompt: str, notes: tuple[str, ...]
) -> None:
    loaded = load(tmp_path, "answers", row)
    (example,) = loaded.examples
    assert (example.prompt.text, text(example.answers[0]), loaded.notes) == (prompt, "b<end>", notes)


NO_ANSWER = [
    ({"messages": said("a", "b", "c")}, "messages does not end with the assistant"),
    ({"messages": said("a", "b")[1:]}, "messages has nothing before the assistant's message"),
    ({"messages": []}, "messages is empty"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, "conversations has a message from 'narrator'"),
    ({"conversations": [{"value": "a"}]}, "conversations is a list, but not of messages"),
]
NO_PAIR = [
    (said("a", "b"), said("x", "c"), None, "chosen and rejected have no message in common"),
    (said("a", "b"), said("a", "c", "d", "e"), None, "chosen and rejected differ before their last message"),
    (said("a", "b", "c"), said("a", "b", "d"), None, "chosen does not end with the assistant"),
    (said("a", "b"), said("a", "c"), "z", "chosen and rejected answer something else than prompt"),
    (said("a", "b"), said("a", "b"), "a", "chosen and rejected are equal"),
]


@pytest.mark.parametrize(("row", "why"), NO_ANSWER)
def test_a_conversation_of_which_no_answer_can_be_taken_is_refused(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(RloptError, match=f"row 1: {why}"):
        load(tmp_path, "answers", row)


@pytest.mark.parametrize(("chosen", "rejected", "prompt", "why"), NO_PAIR)
def test_two_conversations_that_are_no_pair_are_refused(
    tmp_path: Path, chosen: Any, rejected: Any, prompt: str | None, why: str
) -> None:
    row = {"chosen": chosen, "rejected": rejected} | ({"prompt": prompt} if prompt else {})
    with pytest.raises(RloptError, match=f"row 1: {why}"):
        load(tmp_path, "pairs", row)


@pytest.mark.parametrize(
    "more", [{}, {"prompt": "a"}, {"prompt": said("a")}, {"messages": said("a", "b"), "score_chosen": 1.0}]
)
def test_two_conversations_that_differ_in_their_last_message_are_a_pair(tmp_path: Path, more: dict[str, Any]) -> None:
    (example,) = load(tmp_path, "pairs", {"chosen": said("a", "b"), "rejected": said("a", "c"), **more}).examples
    assert [text(ids) for ids in (example.prompt.token_ids, *example.answers)] == ["a", "b<end>", "c<end>"]


def test_columns_of_prompt_and_answer_can_be_named(tmp_path: Path) -> None:
    row = {"instruction": "a", "io": {"output": "b"}, "prompt": "unused"}
    (example,) = load(tmp_path, "answers", row, prompt_key="instruction", answer_key="io.output").examples
    assert (text(example.prompt.token_ids), text(example.answers[0])) == ("a", "b<end>")
    (pair,) = load(tmp_path, "pairs", {"q": "a", "chosen": "b", "rejected": "c"}, prompt_key="q").examples
    assert text(pair.prompt.token_ids) == "a"
    with pytest.raises(RloptError, match=r"data.prompt_key=task: .*rows.jsonl has no such column; there are a, q"):
        load(tmp_path, "answers", {"q": "1", "a": "2"}, prompt_key="task")
    with pytest.raises(RloptError, match=r"data.answer_key=a: means nothing to pairs, which are chosen and rejected; drop it"):
        load(tmp_path, "pairs", {"prompt": "1", "chosen": "2", "rejected": "3", "a": "4"}, answer_key="a")


def test_a_text_may_hold_any_line_separator_but_the_files_own(tmp_path: Path) -> None:
    (example,) = load(tmp_path, "answers", {"prompt": "a\u2028b", "completion": "c"}).examples
    assert example.prompt.text == "a\u2028b"


def test_embedded_problems_that_are_held_out_are_others() -> None:
    def problems(key: str) -> set[str]:
        loaded = embedded(key, 50)
        return {example.prompt.text for example in loaded.examples}

    assert not problems("data.train") & problems("data.eval")


def test_the_embedded_task_has_no_pairs() -> None:
    with pytest.raises(
        RloptError, match=r"data.train=arithmetic: the embedded task has no pairs; make some with python -m rlopt.pairs"
    ):
        load_examples("data.train", data_config(train="arithmetic"), "pairs", plain(Letters()), 60, seed=1)
