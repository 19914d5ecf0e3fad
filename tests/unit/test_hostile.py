"""Files from others that are made to harm: each is refused by name, nothing in it is run, and nothing grows without bound."""

import gzip
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlopt.core.deadline import at_most
from rlopt.core.errors import RloptError
from rlopt.data import chat_template, rollout_log, wording
from rlopt.data.rollout_log import Damaged, blocks
from rlopt.learner.deepspeed_engine import read_tensors
from rlopt.models.loading import find_model, load_tokenizer, shape_of
from rlopt.models.untrusted import check_folder
from rlopt.run import checkpoint

RAN = Path("ran")


class Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def touch() -> None:
    RAN.touch()


PICKLES: dict[str, Callable[[], Any]] = {
    "a command": lambda: Calls(os.system, "touch ran"),
    "a program": lambda: Calls(exec, "open('ran', 'w')"),
    "an expression": lambda: Calls(eval, "open('ran', 'w')"),
    "an import": lambda: Calls(__import__, "ran"),
    "a file": lambda: Calls(open, "ran", "w"),
    "a function of ours": lambda: Calls(touch),
    "inside a list": lambda: [1, Calls(os.system, "touch ran")],
    "as a key": lambda: {("a", 1): torch.zeros(2), "b": Calls(os.mkdir, "ran")},
    "beside tensors": lambda: {"module": {"w": torch.zeros(2)}, "x": Calls(os.system, "touch ran")},
    "a removal": lambda: Calls(shutil.rmtree, "/nowhere"),
    "another pickle": lambda: Calls(pickle.loads, pickle.dumps(1)),
    "an attribute": lambda: Calls(getattr, "", "format"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_checkpoint_that_would_call_something_is_refused_and_it_is_not_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(PICKLES[name](), tmp_path / "state.pt")
    with pytest.raises(
        RloptError, match=r"^run.resume: .*state.pt holds .*, which no checkpoint of rlopt does; use another one$"
    ):
        read_tensors(str(tmp_path / "state.pt"), None)
    assert not RAN.exists()


def test_tensors_and_plain_values_of_a_checkpoint_are_read(tmp_path: Path) -> None:
    kept = {"module": {"w": torch.arange(3)}, "steps": 7, "names": ["a"], "betas": (0.9, 0.95)}
    torch.save(kept, tmp_path / "state.pt")
    assert str(read_tensors(str(tmp_path / "state.pt"), None)) == str(kept)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with two small tensors and the tiny model's other files."""
    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny_s", lambda *_: None), folder)
    save_file({"a": torch.zeros(4, 2), "b": torch.ones(3)}, folder / "model.safetensors")
    return folder


def settings(file: str, **changed: Any) -> Callable[[Path], None]:
    """Change settings of a file."""

    def change(folder: Path) -> None:
        kept = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(kept | changed))

    return change


def text(file: str, content: str | bytes) -> Callable[[Path], None]:
    """Replace a file."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def header(**tensors: Any) -> bytes:
    """A safetensors file of 16 bytes of data with this header."""
    head = json.dumps(tensors).encode()
    return len(head).to_bytes(8, "little") + head + bytes(16)


def tensor(*ends: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": list(ends)}


def index(**places: Any) -> Callable[[Path], None]:
    return text("model.safetensors.index.json", json.dumps({"weight_map": places}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Calls(os.system, "touch ran"), folder / "pytorch_model.bin")


AUTO = {"AutoModelForCausalLM": "modeling.Evil"}
MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "code of its own": (settings("config.json", auto_map=AUTO), "config.json has code of its own"),
    "a tokenizer's code": (settings("tokenizer_config.json", auto_map=AUTO), "tokenizer_config.json has code of its own"),
    "generation's code": (settings("generation_config.json", auto_map=AUTO), "generation_config.json has code of its own"),
    "pickled weights": (pickled, "pytorch_model.bin is a pickle, which may run code"),
    "a billion layers": (settings("config.json", num_hidden_layers=10**9), "num_hidden_layers=1000000000; want 1 to 1024"),
    "no head": (settings("config.json", num_attention_heads=0), "num_attention_heads=0; want 1 to"),
    "a negative width": (settings("config.json", hidden_size=-64), "hidden_size=-64; want 1 to"),
    "a width of text": (settings("config.json", hidden_size="64"), "hidden_size=64; want 1 to"),
    "a true number": (settings("config.json", vocab_size=True), "vocab_size=True; want 1 to"),
    "a fraction": (settings("config.json", intermediate_size=0.5), "intermediate_size=0.5; want 1 to"),
    "a part that is too large": (
        settings("config.json", text_config={"vocab_size": 2**40}),
        "vocab_size=1099511627776; want 1 to",
    ),
    "a list for a config": (text("config.json", "[]"), "config.json is not a JSON object"),
    "no JSON": (text("config.json", "{"), "config.json is not JSON"),
    "no text": (text("config.json", b"\xff\xfe\x00"), "config.json is not JSON"),
    "deep nesting": (text("config.json", "[" * 200_000), "config.json is not JSON"),
    "a tokenizer that is a number": (text("tokenizer.json", "7"), "tokenizer.json is not a JSON object"),
    "a header of exabytes": (text("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), "is not a safetensors file"),
    "a header longer than the file": (text("model.safetensors", (99).to_bytes(8, "little") + b"{}"), "or was cut short"),
    "an empty file": (text("model.safetensors", b""), "is not a safetensors file, or was cut short"),
    "a header that is a list": (text("model.safetensors", (2).to_bytes(8, "little") + b"[]"), "no header that can be read"),
    "a header without JSON": (text("model.safetensors", (2).to_bytes(8, "little") + b"{{"), "no header that can be read"),
    "a tensor past the end": (text("model.safetensors", header(a=tensor(0, 17))), "a is not within the file"),
    "a tensor before the beginning": (text("model.safetensors", header(a=tensor(-16, 0))), "a is not within the file"),
    "a tensor backwards": (text("model.safetensors", header(a=tensor(16, 0))), "a is not within the file"),
    "a tensor without a place": (text("model.safetensors", header(a=tensor())), "a is not within the file"),
    "a place that is text": (text("model.safetensors", header(a=tensor("0", "16"))), "a is not within the file"),
    "a tensor that is a number": (text("model.safetensors", header(a=3)), "a is not within the file"),
    "a file outside": (index(a="../../secret.safetensors"), "names ../../secret.safetensors, which is no file of the folder"),
    "a file anywhere": (index(a="/etc/passwd"), "names /etc/passwd, which is no file of the folder"),
    "a file that is missing": (index(a="other.safetensors"), "other.safetensors is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "the folder has no weights"),
    "no map": (text("model.safetensors.index.json", "{}"), "index.json has no weight_map"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_one_is_refused_by_its_file(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, why = MODELS[name]
    monkeypatch.chdir(tmp_path)
    check_folder("m", model)
    change(model)
    with pytest.raises(RloptError, match=f"^model.path={model}: .*{why.replace('(', '[(]')}"):
        find_model(str(model), lambda *_: None)
    assert not RAN.exists()


def test_a_tokenizer_or_a_config_that_its_library_refuses_is_one_line(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(RloptError, match="its tokenizer cannot be read"):
        load_tokenizer(model)
    settings("config.json", num_key_value_heads=3, num_attention_heads=4)(model)
    settings("config.json", layer_types=["evil"])(model)
    with pytest.raises(RloptError, match="its config cannot be read"):
        shape_of(model)


TEMPLATES = {
    "classes": "{{ messages.__class__.__mro__ }}",
    "what is behind them": "{{ ''.__class__.__base__.__subclasses__() }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch ran') }}",
    "the globals of a function": "{{ raise_exception.__globals__['os'].system('touch ran') }}",
    "a range without end": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a change of what it is given": "{{ messages.append(1) }}",
    "an error": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_reaches_for_more_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(wording.UnusableRow, match="the tokenizer's chat template refuses it|puts|leaves"):
        words(TEMPLATES[name]).ids("1+1=")
    assert not RAN.exists()


def words(template: str) -> wording.Wording:
    tokenizer = load_tokenizer(find_model("tiny_s", lambda *_: None))
    tokenizer.chat_template = template
    return wording.Wording(tokenizer, None, True, None)


def test_a_chat_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_S", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    with pytest.raises(RloptError, match="its chat template does not end in 0 s; use a model with another"):
        words(endless).ids("1+1=")


@pytest.mark.parametrize("greedy", [
    "{{ 'x' * 500000000 }}",
    "{% set all = namespace(text='x' * 1000) %}{% for i in range(20) %}{% set all.text = all.text ~ all.text %}{% endfor %}",
])  # fmt: skip
def test_a_chat_template_that_takes_all_memory_is_refused(greedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(chat_template, "TEMPLATE_BYTES", 2**28)
    with pytest.raises(RloptError, match="its chat template takes more than 0.25 GiB; use a model with another"):
        words(greedy).ids("1+1=")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_deadline_ends_what_it_is_around_alone() -> None:
    def endless() -> None:
        with at_most(0.05):
            while True:
                pass

    with pytest.raises(TimeoutError):
        endless()
    with at_most(0.05):
        pass
    sum(range(3_000_000))  # no alarm is left


def test_a_record_that_unpacks_to_more_than_any_step_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_log, "LARGEST", 2**20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"{}\n" + b"0" * 2**24))
    with pytest.raises(Damaged, match="a block unpacks to over"):
        list(blocks(tmp_path / "a.gz"))


@pytest.mark.parametrize("manifest", ['{"files": {"../../../etc/passwd": 3}}', "[]", "{}", '{"files": 3}'])
def test_a_manifest_that_names_nothing_of_the_checkpoint_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RloptError, match="^run.resume=.*(manifest.json cannot be read|is missing or has not)"):
        checkpoint.verify(tmp_path)
