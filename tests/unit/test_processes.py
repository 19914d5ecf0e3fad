"""Any function of the user's in processes of its own: how it is called, named when it fails, and ended."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rlopt.core.errors import RloptError
from rlopt.core.sandbox import Failed, Pool


@dataclass(frozen=True)
class Split:
    completion: str


def test_a_call_gives_its_fields_as_arguments_and_answers_come_in_order() -> None:
    pool = Pool("pairs.split", "rlopt.data.arithmetic:split_steps", workers=2, timeout_s=20.0)
    texts = ["a\nb", "", "c\n"]
    assert pool.call([Split(text) for text in texts]) == [["a\n", "b"], [], ["c\n"]]
    assert pool.call_each([Split(text) for text in texts]) == [["a\n", "b"], [], ["c\n"]]
    pool.close()


def test_a_failure_is_named_by_its_setting_and_its_input() -> None:
    pool = Pool("pairs.split", "rlopt.data.arithmetic:split_steps", workers=1, timeout_s=20.0)
    with pytest.raises(
        RloptError, match=r"pairs.split=rlopt.data.arithmetic:split_steps raised TypeError: .* on Split\(completion=3\)"
    ):
        pool.call_each([Split("a"), Split(3)])  # type: ignore[arg-type]
    pool.close()
    with pytest.raises(RloptError, match="pairs.split=rlopt.data.arithmetic:cut: cannot be imported .*want module:function"):
        Pool("pairs.split", "rlopt.data.arithmetic:cut", workers=1, timeout_s=1.0)


def made(name: str, *calls: str, timeout_s: float = 20.0) -> list[object]:
    pool = Pool("reward.fn", f"user_rewards:{name}", workers=1, timeout_s=timeout_s)
    try:
        return pool.attempt([Split(text) for text in calls])
    finally:
        pool.close()


def test_what_fails_is_told_apart_and_the_other_calls_are_answered() -> None:
    answers = made("moody", "fine", "raise", "hang", "die", "fine", timeout_s=2.0)
    assert [answers[0], answers[4]] == [1.0, 1.0]
    kinds = [answer.kind for answer in answers if isinstance(answer, Failed)]
    assert kinds == ["raised", "timeout", "died"]


@pytest.mark.parametrize("name", ["leave_a_child_behind", "leave_an_orphan_behind"])
def test_what_a_function_started_ends_with_it(name: str, tmp_path: Path) -> None:
    (answer,) = made(name, str(tmp_path / "pid"), timeout_s=3.0)
    assert isinstance(answer, Failed)
    assert answer.kind == "timeout"
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child of the killed process lives on"
        time.sleep(0.05)


def test_a_function_that_forks_answers_once() -> None:
    assert made("fork", "a", "b", "c") == ["a", "b", "c"]


def test_megabytes_that_are_printed_go_nowhere_but_for_their_end_where_it_raises() -> None:
    fine, failed = made("chatty", "fine", "raise")
    assert fine == 1.0
    assert isinstance(failed, Failed)
    assert "raised ValueError: as asked" in failed.why
    assert failed.why.endswith("before that it printed " + repr("x" * 200))


def test_numbers_of_numpy_count_and_what_is_not_a_plain_value_is_a_failure() -> None:
    number, odd = made("numpy_number", "2.5", "odd")
    assert number == 2.5
    assert isinstance(odd, Failed)
    assert odd.kind == "raised"


def test_a_function_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completion):\n    return len(completion)\n")
    pool = Pool("reward.fn", f"{tmp_path}/mine.py:score", workers=1, timeout_s=20.0)
    assert pool.call([Split("abc")]) == [3]
    pool.close()


def test_a_call_is_shown_with_beginning_and_end_however_long_it_is() -> None:
    pool = Pool("reward.fn", "user_rewards:moody", workers=1, timeout_s=20.0)
    line = pool.explain(Split("x" * 100_000), Failed("died", "died"))
    pool.close()
    assert len(line) < 2100
    assert line.startswith("reward.fn=user_rewards:moody died on Split(completion='xxx")
    assert line.endswith("xxx')")


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_call_whose_process_was_killed_or_stopped_from_outside_is_made_again(number: int, tmp_path: Path) -> None:
    """The function writes its process down, and waits where it is the first of all calls."""
    pool = Pool("reward.fn", "user_rewards:first_waits", workers=1, timeout_s=3.0)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(pool.call, [Split(str(tmp_path))])
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (first,) = tmp_path.iterdir()
        os.kill(int(first.name), number)
        assert call.result(timeout=60) == [2.0]
    pool.close()
