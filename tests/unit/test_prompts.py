"""From rows to prompts: columns, wording, answers, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import data_config

from rlopt.core.errors import RloptError
from rlopt.data.columns import final_answer
from rlopt.data.prompts import Loaded, drop_eval_overlap, load_prompts
from rlopt.data.unusable import UnusableRow
from rlopt.data.wording import wording
from rlopt.rewards.latex import boxes


class Letters:
    """A tokenizer of letters without a chat template."""

    eos_token_id = 0
    chat_template: str | None = None
    rlopt_known: int | None = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*([1] if add_special_tokens else []), *map(ord, text)]


class Chatty(Letters):
    chat_template = "as below"

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Any = None,
    ) -> str:
        assert (tokenize, add_generation_prompt) == (False, not continue_final_message)
        said = "".join(f"<{m['role']}>{m.get('content', '')}{m.get('tool_calls', '')}" for m in conversation)
        return (f"<tools>{tools}" if tools else "") + said + "<assistant>" * add_generation_prompt


class Calling(Chatty):
    chat_template = "{{ messages, tools, message.tool_calls }}"


class Stripping(Chatty):
    """Its template takes the spaces at the end of what was said away."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        return super().apply_chat_template([{**m, "content": m["content"].strip()} for m in conversation], **options)


class Broken(Chatty):
    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        raise TypeError("can only concatenate str")


def load(folder: Path, *rows: Any, tokenizer: Letters | None = None, room: int = 100, **config: Any) -> Loaded:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    data = data_config(train=str(file), **config)
    return load_prompts(data, "data.train", str(file), 0, wording(data, tokenizer or Letters()), room)


def worded(loaded: Loaded, number: int = 0) -> str:
    return "".join(map(chr, loaded.prompts[number].token_ids)).replace("\1", "^")


ASKED = [{"role": "user", "content": "1+1"}]


@pytest.mark.parametrize(("row", "about"), [
    ({"question": "1+1", "answer": "2"}, "questions and answers (question, answer)"),
    ({"prompt": "1+1", "answer": 2}, "TRL's columns (prompt, answer)"),
    ({"prompt": "1+1", "solution": "2"}, "TRL's columns (prompt, solution)"),
    ({"problem": "1+1", "solution": r"It is \boxed{2}."}, r"problems and solutions (problem, solution in \boxed{})"),
    ({"question": "1+1", "answer": "1+1=<<1+1=2>>2\n#### 2"}, "questions and answers (question, answer after ####)"),
    ({"prompt": "1+1", "data_source": "sums", "reward_model": {"style": "rule", "ground_truth": "2"}, "answer": "unused"},
     "verl's columns (prompt, reward_model.ground_truth)"),
    ({"prompt": ASKED, "answer": "2"}, "TRL's columns (prompt, answer)"),
])  # fmt: skip
def test_rows_of_other_frameworks_are_distinguished_by_their_columns(tmp_path: Path, row: dict[str, Any], about: str) -> None:
    loaded = load(tmp_path, row)
    (only,) = loaded.prompts
    assert (only.id, only.text, only.answer, worded(loaded)) == ("rows.jsonl:1", "1+1", "2", "^1+1")
    assert loaded.about == about


def test_other_columns_are_kept_for_the_reward_and_messages_as_they_were(tmp_path: Path) -> None:
    row = {"prompt": ASKED, "data_source": "sums", "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 3}}
    (only,) = load(tmp_path, row).prompts
    assert only.columns == {
        "data_source": "sums",
        "reward_model": {"ground_truth": "2"},
        "extra_info": {"index": 3},
        "messages": ASKED,
    }


def test_columns_that_are_named_are_taken_and_dots_lead_inside(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"q": {"en": "1+1"}, "answer": "3", "a": "2"}, prompt_key="q.en", answer_key="a")
    assert (loaded.prompts[0].text, loaded.prompts[0].answer) == ("1+1", "2")
    assert loaded.about == "columns as named (q.en, a)"


def test_columns_that_are_not_known_or_not_there_are_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match=r"columns a, q do not say which holds what; set data.prompt_key and data.answer_key"):
        load(tmp_path, {"q": "1+1", "a": "2"})
    with pytest.raises(RloptError, match=r"data.prompt_key=task: .* has no such column; there are a, q"):
        load(tmp_path, {"q": "1+1", "a": "2"}, prompt_key="task")


def test_an_embedded_task_that_the_tokenizer_does_not_know_is_refused_in_one_line() -> None:
    class Blind(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return []

    data = data_config(train="arithmetic")
    with pytest.raises(RloptError, match=r"data.train=arithmetic: no row can be used \(prompt has no token that the tokenizer"):
        load_prompts(data, "data.train", "arithmetic", 0, wording(data, Blind()), 100)


def test_a_token_that_the_model_has_not_makes_a_row_unusable(tmp_path: Path) -> None:
    tokenizer = Letters()
    tokenizer.rlopt_known = ord("z") + 1
    row = {"prompt": "xyz", "answer": "2"}
    assert len(load(tmp_path, row, tokenizer=tokenizer).prompts) == 1
    with pytest.raises(RloptError, match=r"row 2: has token 123, and the model's embeddings have 123 \(see resize_token_emb"):
        load(tmp_path, row, row | {"prompt": "{"}, tokenizer=tokenizer)


def test_answers_that_leave_no_room_for_a_prompt_are_refused_by_their_length(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match=r"rollout.max_new_tokens: is 4 tokens too many for the model to have room for any"):
        load(tmp_path, {"prompt": "1+1", "answer": "2"}, room=-3)


def test_prompts_alone_will_do_and_their_other_columns_go_to_the_reward(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "1+1", "target": 2})
    (only,) = loaded.prompts
    assert (only.text, only.answer, only.columns) == ("1+1", "", {"target": 2})
    assert (loaded.about, loaded.answered) == ("prompts without answers (prompt)", False)
    named = load(tmp_path, {"q": "1+1"}, prompt_key="q")
    assert (named.prompts[0].text, named.answered) == ("1+1", False)
    with pytest.raises(RloptError, match=r"data.answer_key=a: .* has no such column; there are prompt"):
        load(tmp_path, {"prompt": "1+1"}, answer_key="a")
    assert load(tmp_path, {"prompt": "1+1", "answer": "2"}).answered


@pytest.mark.parametrize(("answer", "read"), [
    (["#### 2", "#### two"], ["2", "two"]),
    ([2, "#### 3"], [2, "3"]),
    ({"target": ["#### 2"]}, {"target": ["#### 2"]}),
])  # fmt: skip
def test_an_answer_may_be_a_list_or_a_mapping(tmp_path: Path, answer: Any, read: Any) -> None:
    loaded = load(tmp_path, {"prompt": "1+1", "reward_model": {"ground_truth": answer}}, answer_format="hash")
    assert loaded.prompts[0].answer == read


@pytest.mark.parametrize(("answer", "why"), [
    ([], "answer is empty"),
    ({}, "answer is empty"),
    ([float("nan")], "answer has something in it that is not JSON"),
    (["2", ""], "the answer is empty"),
])  # fmt: skip
def test_an_answer_that_says_nothing_is_refused(tmp_path: Path, answer: Any, why: str) -> None:
    with pytest.raises(RloptError, match=f"row 1: {why}"):
        load(tmp_path, {"prompt": "1+1", "answer": answer})


def test_a_template_is_put_around_the_prompt_and_the_reward_sees_the_prompt_alone(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "1+1", "answer": "2"}, template="Q: {prompt}\nA: ")
    assert worded(loaded) == "^Q: 1+1\nA: "
    assert loaded.prompts[0].text == "1+1"
    with pytest.raises(RloptError, match=r"data.template=Q:: has no \{prompt\}"):
        data_config(template="Q:")


def test_a_line_break_can_be_written_on_the_command_line_and_latex_from_a_file_is_left_alone(tmp_path: Path) -> None:
    row = {"prompt": "1+1", "answer": "2"}
    assert worded(load(tmp_path, row, template=r"{prompt}\nA: ")) == "^1+1\nA: "
    assert worded(load(tmp_path, row, template="{prompt}\n" + r"\neq")) == "^1+1\n" + r"\neq"


def test_a_tokenizer_with_a_chat_template_gets_conversations(tmp_path: Path) -> None:
    row = {"prompt": "1+1", "answer": "2"}
    assert worded(load(tmp_path, row, tokenizer=Chatty())) == "<user>1+1<assistant>"
    assert worded(load(tmp_path, row, tokenizer=Chatty(), chat="never")) == "^1+1"
    asked = load(tmp_path, row, tokenizer=Chatty(), system="Be brief.", template="{prompt}=")
    assert worded(asked) == "<system>Be brief.<user>1+1=<assistant>"
    own = [{"role": "system", "content": "Own."}, *ASKED]
    assert worded(load(tmp_path, {"prompt": own, "answer": "2"}, tokenizer=Chatty(), system="Be brief.")) == (
        "<system>Own.<user>1+1<assistant>"
    )


def test_what_needs_a_chat_template_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="data.chat=always: the model's tokenizer has no chat template"):
        load(tmp_path, {"prompt": "1", "answer": "2"}, chat="always")
    with pytest.raises(RloptError, match=r"data.system='Be brief.': prompts are not conversations here"):
        load(tmp_path, {"prompt": "1", "answer": "2"}, system="Be brief.")


@pytest.mark.parametrize(("kind", "text", "answer"), [
    ("text", " 2 ", "2"),
    ("hash", "so\n#### 1,234", "1234"),
    ("hash", "#### 1\n#### 2", "2"),
    ("boxed", r"\boxed{1} or \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
])  # fmt: skip
def test_what_counts_of_an_answer(kind: Any, text: str, answer: str) -> None:
    assert final_answer(text, kind) == answer


@pytest.mark.parametrize(
    ("kind", "text"), [("hash", "2"), ("hash", "####"), ("boxed", "2"), ("boxed", r"\boxed{"), ("text", " ")]
)
def test_an_answer_without_what_counts_cannot_be_used(kind: Any, text: str) -> None:
    with pytest.raises(UnusableRow):
        final_answer(text, kind)


@pytest.mark.parametrize(("text", "found"), [
    (r"\boxed{1} and \boxed{2", ["1"]),  # never closed
    (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
    (r"so $x = \boxed 2$.", ["2"]),  # as some solutions of MATH have it
    (r"so \boxed 2.", ["2"]),
    (r"\fbox{5} then 6", ["5"]),
    (r"\boxedly{5}", []),
    ("", []),
])  # fmt: skip
def test_what_boxes_hold(text: str, found: list[str]) -> None:
    assert boxes(text) == found


def test_answers_are_read_as_most_of_them_are_and_the_others_are_named(tmp_path: Path) -> None:
    rows = [{"problem": "a", "solution": text} for text in (r"\boxed{1}", r"\boxed{2}", "3")]
    with pytest.raises(RloptError, match=r"1 of 3 rows are unusable \(row 3: the answer has nothing in .boxed"):
        load(tmp_path, *rows)


def test_a_chat_template_that_refuses_a_prompt_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    import jinja2

    class Strict(Chatty):
        def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
            raise jinja2.TemplateError("roles must alternate")

    with pytest.raises(RloptError, match=r"row 1: the tokenizer's chat template refuses it \(roles must alternate\)"):
        load(tmp_path, {"prompt": "a", "answer": "b"}, tokenizer=Strict())


@pytest.mark.parametrize(("rows", "message"), [
    ([""], "the file has no rows"),
    (["\n"], "the file has no rows"),
    ([{"prompt": "a", "answer": "b"}, '{"prompt"'], "row 2 is not JSON"),
    ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], r"1 of 2 rows are unusable \(row 2: no answer, only prompt\)"),
    ([{"prompt": "a", "answer": "b"}, {"prompt": "", "answer": "b"}], "row 2: prompt is empty"),
    ([{"prompt": "a\ud800", "answer": "b"}], r"row 1: has half a character \(a surrogate without its other half\)"),
    ([{"prompt": {"a": 1}, "answer": "b"}], "row 1: prompt is not text but a dict"),
    ([{"prompt": ["a"], "answer": "b"}], "row 1: prompt is a list, but not of messages with role and content"),
    ([{"prompt": "abcdef", "answer": "b"}], "no prompt is left, 1 are prompts of more than 5 tokens"),
])  # fmt: skip
def test_rows_that_cannot_be_used_are_refused_by_number(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(RloptError, match=message):
        load(tmp_path, *rows, room=5)


def test_rows_to_be_dropped_and_prompts_that_are_too_long_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "", "answer": "b"}, {"prompt": "abcdef", "answer": "b"}]
    loaded = load(tmp_path, *rows, room=5, invalid_rows="drop")
    assert [prompt.id for prompt in loaded.prompts] == ["rows.jsonl:1"]
    assert loaded.left_out == {
        "prompt is empty": [2],
        "prompts of more than 5 tokens": [3],
    }


def test_prompts_that_are_evaluated_on_are_not_trained_on(tmp_path: Path) -> None:
    loaded = load(tmp_path, *({"prompt": text, "answer": "b"} for text in "abca"))
    kept = drop_eval_overlap(loaded, loaded.prompts[:1])
    assert [prompt.text for prompt in kept.prompts] == ["b", "c"]
    assert (kept.numbers, kept.left_out) == ([2, 3], {"also in data.eval": [1, 4]})
    with pytest.raises(RloptError, match=r"every prompt is in data.eval too"):
        drop_eval_overlap(loaded, loaded.prompts)


def test_prompts_may_be_limited_below_the_models_context(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "ab", "answer": "c"}, {"prompt": "abcdef", "answer": "c"}, max_prompt_tokens=3)
    assert loaded.left_out == {"prompts of more than 3 tokens": [2]}


BEGUN = [*ASKED, {"role": "assistant", "content": "Let me"}]


def test_a_message_that_the_assistant_began_is_continued_and_not_closed(tmp_path: Path) -> None:
    assert worded(load(tmp_path, {"prompt": BEGUN, "answer": "2"}, tokenizer=Chatty())) == "<user>1+1<assistant>Let me"
    put = load(tmp_path, {"prompt": BEGUN, "answer": "2"}, tokenizer=Chatty(), template="Q {prompt}?", system="S")
    assert worded(put) == "<system>S<user>Q 1+1?<assistant>Let me"  # the template stands around what the user said
    plain = load(tmp_path, {"prompt": BEGUN, "answer": "2"}, tokenizer=Chatty(), chat="never")
    assert worded(plain) == "^1+1\n\nLet me"


@pytest.mark.parametrize(
    ("messages", "tokenizer", "why"),
    [
        ([*ASKED, {"role": "assistant", "content": "Let me "}], Stripping(), "does not end with the assistant.s message"),
        ([*ASKED, {"role": "assistant", "content": ""}], Chatty(), "does not end with the assistant.s message"),
        ([{"role": "user", "content": "1", "name": "Ada"}], Chatty(), "name would be lost: the tokenizer's chat template does"),
        ([{"role": "assistant", "content": "", "tool_calls": [1]}, *ASKED], Chatty(), "tool_calls would be lost"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], Chatty(), "a message with content that is not text"),
        ([{"role": "user", "content": None}], Chatty(), "not of messages with role and content"),
        (ASKED, Broken(), "the tokenizer's chat template refuses it \\(can only concatenate str\\)"),
    ],
)
def test_a_conversation_of_which_something_would_be_lost_is_refused(
    messages: Any, tokenizer: Chatty, why: str, tmp_path: Path
) -> None:
    with pytest.raises(RloptError, match=f"row 1: .*{why}"):
        load(tmp_path, {"prompt": messages, "answer": "2"}, tokenizer=tokenizer)


def test_what_the_chat_template_reads_of_a_message_is_given_to_it_and_to_the_reward(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}], "name": None}
    row = {
        "prompt": [*ASKED, call, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    }
    loaded = load(tmp_path, {**row, "answer": "2", "tools": '[{"f": 1}]'}, tokenizer=Calling())
    assert worded(loaded) == "<tools>[{'f': 1}]<user>1+1<assistant>[{'name': 'add'}]<user>ab<assistant>"
    assert loaded.prompts[0].columns["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    for lost, chat in (("tools", "auto"), ("tools", "never")):
        with pytest.raises(RloptError, match=f"{lost} would be lost"):
            load(tmp_path, {"prompt": "1", "answer": "2", "tools": [1]} | {"prompt": ASKED}, tokenizer=Chatty(), chat=chat)


@pytest.mark.parametrize(("template", "text"), [
    (r"{prompt} Use $\nabla f$", r"^1+1 Use $\nabla f$"),
    (r"{prompt}\nUse $\nabla f \neq \nu$\n", "^1+1\nUse $" + r"\nabla f \neq \nu$" + "\n"),
    (r"{prompt}\nnumber:", "^1+1\nnumber:"),
    (r"{prompt}\n\nA:", "^1+1\n\nA:"),
])  # fmt: skip
def test_a_typed_line_break_is_one_and_the_beginning_of_a_latex_command_is_none(
    template: str, text: str, tmp_path: Path
) -> None:
    assert worded(load(tmp_path, {"prompt": "1+1", "answer": "2"}, template=template)) == text


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "null"])
def test_a_nan_is_not_an_answer_and_a_first_row_without_one_is_dropped_and_counted(answer: str, tmp_path: Path) -> None:
    rows = (f'{{"prompt": "1+1", "answer": {answer}}}', {"prompt": "1+2", "answer": "3"})
    with pytest.raises(RloptError, match="1 of 2 rows are unusable \\(row 1: "):
        load(tmp_path, *rows)
    loaded = load(tmp_path, *rows, invalid_rows="drop")
    assert [prompt.answer for prompt in loaded.prompts] == ["3"]
    assert sum(map(len, loaded.left_out.values())) == 1


def test_half_a_character_anywhere_in_a_row_is_refused_at_the_start(tmp_path: Path) -> None:
    for row in ({"prompt": "1", "answer": "3\ud800"}, {"prompt": "1", "answer": "3", "level": ["a\udfff"]}):
        with pytest.raises(RloptError, match="row 1: has half a character"):
            load(tmp_path, row)


@pytest.mark.parametrize(("text", "answer"), [
    ("x\n#### 0,1", "0,1"),
    ("#### 1,234", "1234"),
    ("#### -1,234,567.5", "-1234567.5"),
    ("#### $1,234", "$1234"),
    ("#### 1,000, 2,000", "1,000, 2,000"),
    ("#### (1,234)", "(1,234)"),
])  # fmt: skip
def test_commas_are_taken_from_a_lone_number_with_thousands_alone(text: str, answer: str) -> None:
    assert final_answer(text, "hash") == answer


def test_repeated_rows_and_other_columns_are_reported(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": "2", "level": 3} for text in ("1 + 1", "1  +\t1 ", "1+2")]
    assert load(tmp_path, *rows).notes == (
        "other columns, which the reward gets: level",
        "1 of 3 prompts repeat another, but for white space",
    )


def test_a_prompt_that_is_evaluated_on_is_left_out_whatever_its_white_space(tmp_path: Path) -> None:
    train = load(tmp_path, {"prompt": "1 +  1", "answer": "2"}, {"prompt": "1+2", "answer": "3"})
    held_out = load(tmp_path, {"prompt": "1 + 1\n", "answer": "2"}).prompts
    kept = drop_eval_overlap(train, held_out)
    assert [prompt.text for prompt in kept.prompts] == ["1+2"]
    assert kept.left_out == {"also in data.eval": [1]}
