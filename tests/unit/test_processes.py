"""Any function of the user's in processes of its own: how it is called, named when it fails, and ended."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from rlopt.errors import RloptError
from rlopt.processes import Pool


@dataclass(frozen=True)
class Split:
    completion: str


def test_a_call_gives_its_fields_as_arguments_and_answers_come_in_order() -> None:
    pool = Pool("pairs.split", "rlopt.arithmetic:split_steps", workers=2, timeout_s=20.0)
    texts = ["a\nb", "", "c\n"]
    assert pool.call([Split(text) for text in texts]) == [["a\n", "b"], [], ["c\n"]]
    assert pool.call_each([Split(text) for text in texts]) == [["a\n", "b"], [], ["c\n"]]
    pool.close()


def test_a_failure_is_named_by_its_setting_and_its_input() -> None:
    pool = Pool("pairs.split", "rlopt.arithmetic:split_steps", workers=1, timeout_s=20.0)
    with pytest.raises(
        RloptError, match=r"pairs.split=rlopt.arithmetic:split_steps raised on Split\(completion=3\): TypeError"
    ):
        pool.call_each([Split("a"), Split(3)])  # type: ignore[arg-type]
    pool.close()
    with pytest.raises(RloptError, match="pairs.split=rlopt.arithmetic:cut: cannot be imported .*want module:function"):
        Pool("pairs.split", "rlopt.arithmetic:cut", workers=1, timeout_s=1.0)


def test_closing_waits_for_no_call_and_leaves_no_process() -> None:
    others = set(multiprocessing.active_children())
    pool = Pool("pairs.split", "user_rewards:asleep", workers=2, timeout_s=60.0)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(pool.call, [Split("a")])
        time.sleep(0.5)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 5
        with pytest.raises(RloptError, match="died"):
            call.result(timeout=5)
    assert set(multiprocessing.active_children()) == others
