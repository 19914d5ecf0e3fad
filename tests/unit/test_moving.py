"""The page for those who come from elsewhere names keys that exist, there and here."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rlopt.config.compose import algorithms, conf_dir
from rlopt.rewards.pool import Question, load

FOLDER = Path(__file__).parents[2] / "examples" / "moving"
PAGE = (FOLDER / "README.md").read_text()


def rows(framework: str) -> list[tuple[list[str], list[str], str]]:
    """(their keys, our keys, note) of the table of a framework."""
    section = PAGE.split(f"## From {framework}")[1].split("\n## ")[0]
    lines = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", theirs), re.findall(r"`([^`]+)`", ours), note) for theirs, ours, note in lines]


def known() -> set[str]:
    config: Any = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    keys = {f"{section}.{key}" for section, values in config.items() if isinstance(values, dict) for key in _flat(values)}
    for file in (conf_dir() / "algo").glob("*.yaml"):
        keys |= {f"algo.{key}" for key in _flat(yaml.safe_load(file.read_text()))}
    return keys


def _flat(values: dict[str, Any]) -> set[str]:
    inner = {f"{key}.{name}" for key, value in values.items() if isinstance(value, dict) for name in value}
    return set(values) | inner


@pytest.mark.parametrize("framework", ["TRL", "verl", "Trinity-RFT"])
def test_our_keys_are_keys_and_our_algorithms_are_algorithms(framework: str) -> None:
    table, keys = rows(framework), known()
    assert len(table) > 15
    for _, ours, note in table:
        for key in ours:
            name = key.split("=")[0]
            assert name in keys or name == "+algo", key
        for name in re.findall(r"\+algo=(\w+)", f"{ours} {note}"):
            assert name in algorithms(), name
        for key in re.findall(r"`([a-z]+\.[a-z_.]+)=", note):
            assert key in keys, key


def test_the_keys_of_trl_are_those_of_the_version_that_is_locked() -> None:
    trl = pytest.importorskip("trl")
    fields = {field.name for field in dataclasses.fields(trl.GRPOConfig)} | {
        "model",
        "train_dataset",
        "eval_dataset",
        "reward_funcs",
        "peft_config",
        "tools",
        "environment_factory",
    }
    named = {key.split("=")[0] for theirs, _, _ in rows("TRL") for key in theirs}
    assert named <= fields, named - fields


def test_one_reward_in_three_signatures_gives_the_same_score() -> None:
    name = FOLDER / "rewards.py"
    for completion, value in (("it is 7", 1.0), ("it is 8", 0.0)):
        question = vars(Question("3+4=", completion, "7", {"data_source": "sums"}))
        said = [load(f"{name}:{function}")(**question) for function in ("trl_reward", "reward")]
        assert said == [value, value]
        assert load(f"{name}:compute_score")(**question) == {"score": value, "length": 7}


def test_the_examples_rewards_are_called_by_their_own_frameworks_alike() -> None:
    module = _module(FOLDER / "rewards.py")
    assert module.trl_reward(completions=["7", "8"], prompts=["3+4="] * 2, answer=["7", "7"]) == [1.0, 0.0]
    assert module.compute_score("sums", "7", "7", {})["score"] == 1.0


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
