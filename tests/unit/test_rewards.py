"""Reward functions in their own processes: what they return, and every way in which they fail."""

from collections.abc import Iterator

import pytest

from rlopt.errors import RloptError
from rlopt.rewards import Question, RewardPool, Scored, load


def ask(*completions: str) -> list[Question]:
    return [Question("1+1=", completion, "2") for completion in completions]


@pytest.fixture(scope="module")
def moody() -> Iterator[RewardPool]:
    pool = RewardPool("user_rewards:moody", workers=1, timeout_s=3.0)
    yield pool
    pool.close()


def test_a_dict_gives_the_score_and_named_parts() -> None:
    pool = RewardPool("user_rewards:length", workers=2, timeout_s=10.0)
    assert pool.score(ask("abc", "")) == [Scored(3.0, {"format": 1.0}), Scored(0.0, {"format": 1.0})]
    pool.close()


def test_none_leaves_a_sample_out(moody: RewardPool) -> None:
    assert moody.score(ask("fine", "skip")) == [Scored(1.0, {}), None]


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("raise", "reward.fn=user_rewards:moody raised on .*ValueError: no idea"),
        ("hang", "took over reward.timeout_s=3.0"),
        ("die", "reward.fn=user_rewards:moody died"),
        ("nan", "returned nan"),
    ],
)
def test_a_function_that_fails_is_named_with_its_input_and_the_pool_goes_on(
    moody: RewardPool, completion: str, message: str
) -> None:
    with pytest.raises(RloptError, match=message) as refusal:
        moody.score(ask("fine", completion))
    assert "completion=" in str(refusal.value)
    assert moody.score(ask("fine")) == [Scored(1.0, {})]


@pytest.mark.parametrize("name", ["no_such_module:f", "user_rewards:nothing", "user_rewards", "user_rewards:not_a_function"])
def test_a_name_that_is_no_function_is_refused(name: str) -> None:
    with pytest.raises(RloptError, match=rf"reward.fn={name}: .*want module:function"):
        load(name)
