"""Observations as token ids: what was sampled stays, and the whole reads as the chat template would write it."""

import random
from importlib import resources
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rlopt.core.errors import RloptError
from rlopt.data.dialogue import Dialogue, end_tokens, rewrites, stop_tokens
from rlopt.models.loading import find_model, load_tokenizer
from rlopt.models.tiny import TASKS
from rlopt.models.tiny import tokenizer as characters

MARKS = ["<pad>", "<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<start_of_turn>", "<end_of_turn>"]
MARKS += ["[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]

TEMPLATES = {  # name: file, beginning of a text, end of a turn, roles that an observation can have
    "Qwen2.5": ("qwen2_5", None, "<|im_end|>", ("user", "tool")),
    "Qwen3": ("qwen3", None, "<|im_end|>", ("user", "tool")),
    "Llama 3.1": ("llama3_1", "<|begin_of_text|>", "<|eot_id|>", ("user", "tool")),
    "SmolLM2": ("smollm2", None, "<|im_end|>", ("user", "tool")),
    "Gemma": ("gemma3", "<bos>", "<end_of_turn>", ("user",)),
    "Mistral": ("mistral", "<s>", "</s>", ("user", "tool")),
}
SAID = [
    "4 apples",
    'She said "no".\nThen {"a": [1, 2]} came',
    "x" * 300,
    "na\u00efve caf\u00e9 \u4f60\u597d",
    "a\tb  c",
    "Is it <5>?",
]
SAID += ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "Step 1: 2+2=4\n\nAnswer: 4", "0.5"]


def tokenizer_of(template: str) -> transformers.PreTrainedTokenizerFast:
    """Bytes and the marks of all templates, with one of them."""
    name, begin, end, _ = TEMPLATES[template]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end, pad_token="<pad>")
    own = Path(__file__).parents[1] / "data" / "templates" / f"{name}.jinja"
    packaged = resources.files("trl") / "chat_templates" / f"{name}.jinja"
    made.chat_template = own.read_text() if own.exists() else packaged.read_text()
    return made


def conversation(seed: int, roles: tuple[str, ...]) -> list[dict[str, str]]:
    """A question, and two to four turns with an observation after each."""
    chance = random.Random(seed)
    messages = [{"role": "user", "content": chance.choice(SAID)}]
    for _ in range(chance.randint(2, 4)):
        messages.append({"role": "assistant", "content": chance.choice(SAID)})
        messages.append({"role": chance.choice(roles), "content": chance.choice(SAID)})
    return messages


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_turn_of_twenty_conversations_continues_what_the_template_itself_would_write(template: str) -> None:
    tokenizer, (_, _, end, roles) = tokenizer_of(template), TEMPLATES[template]
    dialogue = Dialogue(tokenizer, True, end_tokens(tokenizer, {}))
    for seed in range(20):
        messages = conversation(seed, roles)
        text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        for place in range(1, len(messages), 2):
            # Mistral's way to write an assistant's message begins with a space, which such a model samples.
            said = (" " if template == "Mistral" else "") + messages[place]["content"]
            turn = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
            before = list(ids)
            ids += turn
            ids += dialogue.observation([messages[place + 1]], ids[-1])
            assert ids[: len(before) + len(turn)] == before + turn  # what was sampled stays
            whole = tokenizer.apply_chat_template(messages[: place + 2], tokenize=False, add_generation_prompt=True)
            assert tokenizer.decode(ids) == whole
            assert ids == tokenizer.encode(whole, add_special_tokens=False)
        assert ids.count(tokenizer.convert_tokens_to_ids(end)) >= (len(messages) - 1) // 2


def test_a_turn_that_a_text_ended_gets_the_end_that_the_template_writes() -> None:
    tokenizer = tokenizer_of("Qwen2.5")
    dialogue = Dialogue(tokenizer, True, end_tokens(tokenizer, {}))
    ids = dialogue.observation("7", tokenizer.encode("]")[0])
    assert tokenizer.decode(ids) == "<|im_end|>\n<|im_start|>user\n7<|im_end|>\n<|im_start|>assistant\n"


def test_another_end_token_of_the_model_counts_as_the_end_that_the_template_writes() -> None:
    tokenizer = tokenizer_of("Llama 3.1")
    eom = tokenizer.convert_tokens_to_ids("<|eom_id|>")
    ends = end_tokens(tokenizer, {"eos_token_id": [eom, tokenizer.eos_token_id]})
    text = tokenizer.decode(Dialogue(tokenizer, True, ends).observation([{"role": "tool", "content": "7"}], eom))
    assert text.startswith('<|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|>')
    assert end_tokens(tokenizer, {"eos_token_id": eom}) == {eom, tokenizer.eos_token_id}


def test_a_template_that_removes_thinking_is_known_and_the_thinking_stays_here() -> None:
    found = {template: rewrites(tokenizer_of(template)) for template in TEMPLATES}
    assert {template for template, why in found.items() if why} == {"Qwen3"}
    assert found["Qwen3"] == "removes what an earlier turn thought"
    tokenizer = tokenizer_of("Qwen3")
    thought = "<think>\nhm\n</think>\n\n4"
    messages = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "sure?"},
    ]
    assert "hm" not in tokenizer.apply_chat_template(messages, tokenize=False)
    ids = [*tokenizer.encode(thought, add_special_tokens=False), tokenizer.eos_token_id]
    ids += Dialogue(tokenizer, True, end_tokens(tokenizer, {})).observation("sure?", ids[-1])
    assert "hm" in tokenizer.decode(ids)


def test_an_observation_that_the_template_refuses_or_leaves_out_is_named() -> None:
    gemma, smol = tokenizer_of("Gemma"), tokenizer_of("SmolLM2")
    with pytest.raises(
        RloptError, match=r"its chat template refuses an observation of the role assistant \(Conversation roles"
    ):
        Dialogue(gemma, True, ()).observation([{"role": "assistant", "content": "7"}], 0)
    smol.chat_template = smol.chat_template.replace(
        "message['content']", "(message['content'] if message.role != 'tool' else '')"
    )
    with pytest.raises(RloptError, match="its chat template leaves out an observation of the role tool"):
        Dialogue(smol, True, ()).observation([{"role": "tool", "content": "seven"}], 0)
    smol.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(RloptError, match="leaves an assistant's message out"):
        Dialogue(smol, True, ()).observation("7", 0)


def test_without_a_template_an_observation_is_its_text() -> None:
    tokenizer = characters(TASKS["tiny_calculator"])
    dialogue = Dialogue(tokenizer, False, {tokenizer.eos_token_id})
    assert tokenizer.decode(dialogue.observation("21\n", 5)) == "21\n"
    assert (
        tokenizer.decode(dialogue.observation([{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}], 5))
        == "1\n2"
    )


def test_a_turn_ends_with_any_token_that_holds_a_text_to_stop_at() -> None:
    tokenizer = characters(TASKS["tiny_calculator"])
    assert [tokenizer.decode([one]) for one in stop_tokens(tokenizer, ["]", "\n"])] == ["\n", "]"]
    assert stop_tokens(tokenizer, []) == []
    with pytest.raises(RloptError, match=r"env.stop='</call>': no token of model.path holds it"):
        stop_tokens(tokenizer, ["</call>"])


def test_a_loaded_tokenizer_cuts_texts_as_its_file_says_whatever_the_architecture(tmp_path: Path) -> None:
    text = "Step 1: 7*3=21\nAnswer: 21"
    tiny = load_tokenizer(find_model("tiny_s", lambda *_: None))
    assert (len(tiny.encode(text)), tiny.decode(tiny.encode(text))) == (len(text), text)
    for kind in (transformers.Qwen2Config, transformers.LlamaConfig, transformers.GPT2Config):
        made = tokenizer_of("Gemma")
        folder = tmp_path / kind.model_type
        made.save_pretrained(folder)
        kind().save_pretrained(folder)
        kept = load_tokenizer(folder)
        assert kept.encode(text) == made.encode(text)
        assert (kept.eos_token_id, kept.chat_template) == (made.eos_token_id, made.chat_template)
