"""Reward functions in their own processes: what they return, every way in which they fail, and the signatures of others."""

from collections.abc import Iterator
from typing import Any

import pytest

from rlopt.errors import Fault, RloptError
from rlopt.rewards import Question, RewardPool, Scored, load


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
def test_a_function_that_raises_is_named_with_its_input_and_the_pool_goes_on(
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


def test_one_file_with_three_signatures_says_the_same_of_the_same_answer() -> None:
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
def test_a_name_that_is_no_function_is_refused(name: str) -> None:
    with pytest.raises(RloptError, match=rf"reward.fn={name}: .*want module:function"):
        load(name)
