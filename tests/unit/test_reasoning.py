"""Tasks of reasoning-gym as data, and their scorers as the reward; a small stand-in takes its place."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from builders import data_config

from rlopt.core.errors import RloptError
from rlopt.data.prompts import load_prompts
from rlopt.data.wording import Wording
from rlopt.models.tiny import tokenizer
from rlopt.rewards import reasoning_gym
from rlopt.rewards.pool import load
from rlopt.rewards.reasoning import final


class Sums:
    """As a task of reasoning-gym: entries by place, drawn from a seed, and a scorer."""

    def __init__(self, seed: int, size: int, terms: int = 2) -> None:
        if terms < 1:
            raise ValueError("terms must be positive")
        self.seed, self.terms = seed, terms

    def __getitem__(self, place: int) -> dict[str, Any]:
        numbers = [1 + (self.seed + place * 7 + term) % 9 for term in range(self.terms)]
        answer = None if place == 3 else str(sum(numbers))
        return {"question": "+".join(map(str, numbers)) + f"+{place}=", "answer": answer, "metadata": {"place": place}}


@pytest.fixture(autouse=True)
def gym(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("reasoning_gym")
    module.factory = SimpleNamespace(DATASETS={"sums": Sums, "other": Sums})
    module.create_dataset = lambda task, **named: Sums(**named)
    module.get_score_answer_fn = lambda task: lambda answer, entry: 1.0 if answer == entry["answer"] else 0.25
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def loaded(name: str, key: Any = "data.train") -> Any:
    words = Wording(tokenizer(), None, chat=False, system=None)
    return load_prompts(data_config(size=5), key, name, 3, words, 60)


def test_a_task_becomes_prompts_with_what_its_scorer_needs() -> None:
    found = loaded("reasoning_gym:sums")
    assert [prompt.id for prompt in found.prompts] == [f"sums:{number}" for number in range(1, 6)]
    first = found.prompts[0]
    assert (first.text, first.answer, found.prompts[3].answer) == ("4+5+0=", "9", "")
    assert first.columns["reasoning_gym"]["task"] == "sums"
    assert loaded("reasoning_gym:sums, terms=3").prompts[0].text == "4+5+6+0="
    assert loaded("reasoning_gym:sums", "data.eval").prompts[0].text != first.text  # another seed


def test_what_is_not_a_task_or_a_parameter_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RloptError, match="data.train=reasoning_gym:sum: reasoning-gym has no task 'sum'; one of other, sums"):
        loaded("reasoning_gym:sum")
    with pytest.raises(RloptError, match="'terms' is not a parameter and its value; write 'data.train="):
        loaded("reasoning_gym:sums,terms")
    with pytest.raises(RloptError, match=r"the task cannot be made \(terms must be positive\); check its parameters"):
        loaded("reasoning_gym:sums,terms=0")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RloptError, match=r"needs reasoning-gym \(.*\); pip install 'rlopt\[reasoning\]'"):
        loaded("reasoning_gym:sums")


def test_the_reward_is_what_the_tasks_scorer_says_of_the_final_answer() -> None:
    columns = loaded("reasoning_gym:sums").prompts[0].columns
    assert reasoning_gym("I think <answer> 9 </answer>", **columns) == 1.0
    reward = load("rlopt.rewards:reasoning_gym")
    assert reward(prompt="", completion="8", answer="9", columns=columns) == 0.25


def test_the_final_answer_is_tagged_boxed_or_the_last_line() -> None:
    assert final("<answer>1</answer> no, <answer> 2\n</answer> \\boxed{3}") == "2"
    assert final("so \\boxed{3} it is") == "3"
    assert final("<think><answer>1</answer></think>Well:\n 4 \n") == "4"
    assert final("") == ""
