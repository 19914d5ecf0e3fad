"""What an environment asks of the model, checked before anything starts."""

import json
from pathlib import Path

import pytest
from test_dialogue import tokenizer_of
from test_environments import env, user

from rlopt.core.errors import RloptError
from rlopt.data.wording import Wording
from rlopt.models.tiny import TASKS, tokenizer
from rlopt.rollout.episode_setup import of_episodes, prepare


def words_of(template: str | None) -> Wording:
    if template is None:
        return Wording(tokenizer(TASKS["tiny_calculator"]), None, chat=False, system=None)
    return Wording(tokenizer_of(template), None, chat=True, system=None)


def test_without_an_environment_nothing_is_prepared(tmp_path: Path) -> None:
    assert prepare(env(), words_of(None), tmp_path) is None
    words = words_of(None)
    assert of_episodes(words, None) is words


def test_tools_are_described_by_the_chat_template_where_it_knows_them(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    setup = prepare(env(tools=[user("add")]), words_of("Qwen2.5"), tmp_path)
    assert setup
    assert (setup.parser, setup.preamble, setup.generation) == ("hermes", None, {"eos_token_id": [1, 2]})
    assert setup.about == "tools add (calls as hermes writes them), at most 8 turns, scored by reward.fn"
    words = of_episodes(words_of("Qwen2.5"), setup)
    text = words.tokenizer.decode(words.ids("2+2?"))
    assert '<tools>\n{"type": "function", "function": {"name": "add", "description": "Add two numbers."' in text
    own = [{"type": "function", "function": {"name": "mine", "description": "", "parameters": {"type": "object"}}}]
    assert "mine" in words.tokenizer.decode(words.ids("2+2?", own))  # a row's own count


def test_a_system_message_describes_tools_where_the_chat_template_knows_none(tmp_path: Path) -> None:
    setup = prepare(env(tools=[user("add"), user("look_up")]), words_of("SmolLM2"), tmp_path)
    assert setup
    assert setup.parser == "hermes"
    assert "the chat template knows no tools: a system message describes them" in setup.notes
    words = of_episodes(words_of("SmolLM2"), setup)
    text = words.tokenizer.decode(words.ids("2+2?"))
    assert text.startswith("<|im_start|>system\nYou may call functions.")
    assert text.count('"type": "function"') == 2
    assert '<tool_call>\n{"name": "add", "arguments": {"a": "...", "b": "..."}}\n</tool_call>' in text
    lead = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    text = words.tokenizer.decode(words.ids(lead))
    assert (text.count("<|im_start|>system"), text.count("next message.\n\nBe brief.")) == (1, 1)


def test_what_does_not_fit_the_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="env.tools=add: the chat template describes tools, and prompts are not conversations"):
        prepare(env(tools=[user("add")]), words_of(None), tmp_path)
    with pytest.raises(RloptError, match="its chat template refuses an observation of the role tool"):
        prepare(env(tools=[user("add")]), words_of("Gemma"), tmp_path)
    with pytest.raises(RloptError, match=r"env.stop='</x>': no token of model.path holds it"):
        prepare(env(fn=user("Counting"), stop=["</x>"]), words_of(None), tmp_path)
    with pytest.raises(
        RloptError, match="env.rewritten=refuse: the chat template removes what an earlier turn thought when the"
    ):
        prepare(env(fn=user("Counting"), rewritten="refuse"), words_of("Qwen3"), tmp_path)


def test_a_template_that_rewrites_turns_is_told_of_and_one_turn_cannot_be_rewritten(tmp_path: Path) -> None:
    setup = prepare(env(fn=user("Counting")), words_of("Qwen3"), tmp_path)
    assert setup
    assert [note.partition(";")[0] for note in setup.notes] == [
        "the chat template removes what an earlier turn thought when the user speaks again"
    ]
    single = prepare(env(fn=user("Counting"), max_turns=1, rewritten="refuse"), words_of("Qwen3"), tmp_path)
    assert single
    assert single.notes == ()


def test_a_line_break_that_was_typed_is_one(tmp_path: Path) -> None:
    config = env(fn=user("Counting"), stop=["\\n"])
    assert config.stops == ["\n"]
    assert prepare(config, words_of(None), tmp_path)
    assert json.loads(json.dumps(config.stop)) == ["\\n"]
