"""Reward functions in their own processes: what they return, every way in which they fail, and the signatures of others."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlopt.core.errors import Fault, RloptError
from rlopt.core.samples import Prompt
from rlopt.rewards.pool import Question, RewardPool, Scored, load, need_answers


def ask(*completions: str) -> list[Question]:
    return [Question("1+1=", completion, "2") for completion in completions]


def pool(names: Any, timeout_s: float = 20.0, weights: Any = None, on_error: Any = "stop") -> RewardPool:
    return RewardPool(names, weights, workers=1, timeout_s=timeout_s, on_error=on_error)


@pytest.fixture(scope="module")
def moody() -> Iterator[RewardPool]:
    made = pool("user_rewards:moody", timeout_s=2.0)
    yield made
    made.close()


def test_a_dict_gives_the_score_and_named_parts() -> None:
    made = pool("user_rewards:length")
    assert made.score(ask("abc", "")) == [Scored(3.0, {"format": 1.0}), Scored(0.0, {"format": 1.0})]
    made.close()


def test_none_leaves_a_sample_out(moody: RewardPool) -> None:
    assert moody.score(ask("fine", "skip")) == [Scored(1.0, {}), None]


@pytest.mark.parametrize(("completion", "message"), [
    ("raise", "reward.fn=user_rewards:moody raised ValueError: no idea .* on Question"),
    ("nan", "returned nan"),
])  # fmt: skip
def test_a_function_that_raises_is_named_with_its_input_and_the_pool_continues(
    moody: RewardPool, completion: str, message: str
) -> None:
    with pytest.raises(RloptError, match=message) as refusal:
        moody.score(ask("fine", completion))
    assert "completion=" in str(refusal.value)
    assert moody.score(ask("fine")) == [Scored(1.0, {})]


def test_a_call_that_hangs_or_dies_costs_its_sample_and_no_other(moody: RewardPool) -> None:
    first, hung, died, last = moody.score(ask("fine", "hang", "die", "fine"))
    assert first == last == Scored(1.0, {})
    assert isinstance(hung, Fault)
    assert isinstance(died, Fault)
    assert (hung.kind, died.kind) == ("timeout", "error")
    assert hung.why.startswith("reward.fn=user_rewards:moody took over reward.timeout_s=2.0 on Question(")
    assert "completion='die'" in died.why


def test_errors_to_be_skipped_are_faults_and_never_a_zero() -> None:
    made = pool("user_rewards:moody", on_error="skip")
    raised, nothing, fine = made.score(ask("raise", "nan", "fine"))
    made.close()
    assert fine == Scored(1.0, {})
    assert [fault.kind for fault in (raised, nothing) if isinstance(fault, Fault)] == ["error", "error"]


def test_several_functions_are_summed_by_their_weights_and_reported_one_by_one() -> None:
    made = pool(["user_rewards:length", "user_rewards:moody"], weights=[0.5, 2.0])
    both, one = made.score(ask("abcd", "skip"))
    made.close()
    assert both == Scored(4.0, {"length": 4.0, "length/format": 1.0, "moody": 1.0})
    assert one == Scored(2.0, {"length": 4.0, "length/format": 1.0})  # moody left it out of its own part


def test_a_part_called_score_does_not_stand_in_for_the_sum() -> None:
    names = ["user_rewards:score", "user_rewards:our_short_style"]
    said = load(names, [2.0, 0.5])(**vars(Question("1+1=", "2", "2")))
    assert said == {"score": 6.5, "user_rewards:score": 3.0, "user_rewards:our_short_style": 1.0}
    assert load(["user_rewards:score"], [0.5])(**vars(Question("1+1=", "2", "2"))) == {"score": 1.5, "user_rewards:score": 3.0}


def test_a_reward_that_wants_what_only_trls_trainer_has_is_refused_at_once() -> None:
    with pytest.raises(RloptError, match="trl_trainer: asks for completion_ids, which TRL's trainer has and rlopt has not"):
        load("user_rewards:trl_trainer")
    with pytest.raises(RloptError, match=r"trl_environments: asks for environments, which live elsewhere; give"):
        load("user_rewards:trl_environments")


def test_a_function_for_trl_gets_the_turns_of_an_episode_as_its_completion() -> None:
    roles = ("assistant", "tool", "assistant")
    columns = {"conversation": [{"role": role, "content": "x"} for role in roles]}
    assert load("user_rewards:trl_turns")(**vars(Question("1+1=", "x", "2", columns))) == 1.0


ROW = {
    "data_source": "sums",
    "reward_model": {"style": "rule", "ground_truth": "two"},
    "extra_info": {"index": 7},
    "level": 3,
}


@pytest.mark.parametrize(("name", "columns", "value"), [
    ("verl_style", ROW, {"score": 1.0, "acc": True}),
    ("trl_style", {"answer": "raw #### 2", "level": 3}, 4.0),
    ("trl_solution", {"solution": "raw"}, 1.0),
    ("trl_style", {"answer": "raw #### 2", "level": 3, "messages": [{"role": "user", "content": "1+1="}]}, 4.0),
    ("our_style", ROW, 3.0),
    ("our_short_style", ROW, 1.0),
])  # fmt: skip
def test_functions_of_other_frameworks_are_called_as_they_expect_it(name: str, columns: Any, value: Any) -> None:
    assert load(f"user_rewards:{name}")(**vars(Question("1+1=", "2", "2", columns))) == value


def test_one_file_with_three_signatures_scores_the_same_answer_alike() -> None:
    for completion, right in (("so 2", 1.0), ("so 3", 0.0)):
        said = [
            load(f"user_rewards:last_word_{style}")(**vars(Question("1+1=", completion, "2")))
            for style in ("ours", "verl", "trl")
        ]
        assert said == [right] * 3


def test_a_function_that_takes_something_else_is_refused_with_what_it_may_take() -> None:
    with pytest.raises(RloptError, match=r"reward.fn=user_rewards:odd_style: takes \(text, gold\); want \(prompt, completion"):
        load("user_rewards:odd_style")


@pytest.mark.parametrize("name", ["no_such_module:f", "user_rewards:nothing", "user_rewards", "user_rewards:not_a_function"])
def test_a_name_that_is_not_a_function_is_refused(name: str) -> None:
    with pytest.raises(RloptError, match=rf"reward.fn={name}: .*want module:function"):
        load(name)


@pytest.mark.parametrize(("name", "scored"), [
    ("awaited", Scored(2.0, {})),
    ("awaited_verl", Scored(3.0, {"acc": 1.0})),
    ("awaited_trl", Scored(4.0, {})),
    ("counting", Scored(1.0, {})),
])  # fmt: skip
def test_an_asynchronous_function_is_awaited_call_after_call_in_one_loop(name: str, scored: Scored) -> None:
    made = pool(f"user_rewards:{name}")
    assert made.score(ask("a", "b", "c")) == [scored] * 3
    made.close()


def test_asynchronous_functions_are_summed_with_others_and_named_when_they_raise() -> None:
    made = pool(["user_rewards:awaited", "user_rewards:score"], weights=[0.5, 1.0])
    assert made.score(ask("a")) == [Scored(4.0, {"user_rewards:awaited": 2.0, "user_rewards:score": 3.0})]
    with pytest.raises(RloptError, match="raised ValueError: as asked"):
        made.score(ask("raise"))
    made.close()


@pytest.mark.parametrize("name", ["streamed", "streamed_later"])
def test_a_generator_is_not_a_score(name: str) -> None:
    made = pool(f"user_rewards:{name}")
    with pytest.raises(RloptError, match="raised TypeError: is a generator, which gives no value; return the score"):
        made.score(ask("a"))
    made.close()


NUMBERS = ["numpy", "array", "torch", "decimal", "fraction", "bool", "in a dict"]
NONE = ["large", "infinite", "text", "two", "list", "nested", "set", "circle"]


@pytest.fixture(scope="module")
def exotic() -> Iterator[RewardPool]:
    made = pool("user_rewards:exotic", on_error="skip")
    yield made
    made.close()


def test_a_number_of_any_library_is_a_score(exotic: RewardPool) -> None:
    assert exotic.score(ask(*NUMBERS)) == [Scored(1.0, {})] * len(NUMBERS)


def test_what_is_not_a_number_is_a_fault_that_shows_it(exotic: RewardPool) -> None:
    found = exotic.score(ask(*NONE))
    assert [type(one) for one in found] == [Fault] * len(NONE)
    assert all("\n" not in one.why for one in found if isinstance(one, Fault))
    large = found[0]
    assert isinstance(large, Fault)
    assert "OverflowError" in large.why


def test_rows_without_answers_are_refused_only_for_a_function_that_asks_for_one() -> None:
    alone = {"data.train": Prompt("1", (1,), "1+1", "", "rows.jsonl", {"target": 2, "level": 1})}
    need_answers(["user_rewards:without_answer", "user_rewards:with_default", "rlopt.rewards:brevity"], alone)
    need_answers("rlopt.rewards:mathematics", {})
    told = (
        r"data.train=rows.jsonl: has no column that is known to hold answers \(beside prompts there are level, target\), and "
    )
    with pytest.raises(RloptError, match=told + "reward.fn=rlopt.rewards:mathematics asks for answer; set data.answer_key, or"):
        need_answers(["user_rewards:without_answer", "rlopt.rewards:mathematics"], alone)
    with pytest.raises(RloptError, match=r"asks for ground_truth"):
        need_answers("user_rewards:verl_style", alone)


def test_a_function_gets_an_answer_as_its_row_has_it() -> None:
    right = {"target": ["2", "two"]}
    for name in ("gets", "gets_for_trl"):
        scored = load(f"user_rewards:{name}")(prompt="1+1", completion="two", answer=right, columns={})
        assert scored == 1.0, name


def test_a_weighted_sum_is_that_of_the_decimals_as_they_are_written() -> None:
    names = [f"user_rewards:{name}" for name in ("one", "two", "three")]
    question = vars(Question("1+1=", "2", "2"))
    assert load(names, [0.7, 0.2, 0.1])(**question) == {"score": 1.0, "one": 1.0, "two": 1.0, "three": 1.0}
    assert 0.7 + 0.2 + 0.1 < 1  # what binary makes of it


FILE = """
from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import neighbour


@dataclass
class Verdict:
    score: float


def worth(text: str) -> Verdict:
    return Verdict(float(len(text)) + neighbour.BONUS)


def pickled(completion: str, **columns: object) -> float:
    return pickle.loads(pickle.dumps(worth))(completion).score


def spawned(completion: str, **columns: object) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(worth, completion).result().score
"""


@pytest.mark.parametrize("name", ["pickled", "spawned"])
def test_a_file_has_its_dataclasses_its_neighbours_and_processes_of_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "my_rewards_of_a_test.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("BONUS = 0.5\n")
    script = (
        "from rlopt.rewards.pool import Question, RewardPool\n"
        "if __name__ == '__main__':\n"
        f"    pool = RewardPool('my_rewards_of_a_test.py:{name}', None, 1, 60.0, 'stop')\n"
        "    print(pool.score([Question('p', 'abc', '')])[0].reward)\n"
        "    pool.close()\n"
    )
    (tmp_path / "main.py").write_text(script)
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "3.5\n", done.stderr


def test_files_of_one_name_and_of_a_librarys_name_are_distinguished(tmp_path: Path) -> None:
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        for name in ("same_name_of_a_test", "json"):
            text = f"def f(completion, **columns):\n    return {value}\n"
            (tmp_path / folder / f"{name}.py").write_text(text)
    question = vars(Question("p", "c", ""))
    for name in ("same_name_of_a_test", "json"):
        said = [load(f"{tmp_path / folder / name}.py:f")(**question) for folder in ("a", "b", "a")]
        assert said == [1.0, 2.0, 1.0]
    assert importlib.import_module("json").dumps([]) == "[]"


def test_a_file_under_the_users_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "at_home_of_a_test.py").write_text("def f(completion, **columns):\n    return 5.0\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/at_home_of_a_test.py:f")(**vars(Question("p", "c", ""))) == 5.0
