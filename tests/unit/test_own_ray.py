"""Ray's start on this machine, with hand-written fakes of it."""

from collections.abc import Callable

import pytest

from rlopt.cluster.own_ray import start_patiently

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


def starting(*errors: str) -> tuple[list[str], Callable[[], None], Callable[[], None]]:
    """What was done, a start that fails with these errors first, and what clears up."""
    done, left = list[str](), list(errors)

    def start() -> None:
        done.append("start")
        if left:
            raise Exception(left.pop(0))

    return done, start, lambda: done.append("clear")


def test_a_start_that_a_busy_machine_was_too_slow_for_is_made_once_more_after_clearing_up() -> None:
    done, start, clear = starting(SLOW)
    start_patiently(start, clear)
    assert done == ["start", "clear", "start"]


def test_a_machine_that_is_too_slow_twice_is_told() -> None:
    done, start, clear = starting(SLOW, SLOW)
    with pytest.raises(Exception, match="timed out during startup"):
        start_patiently(start, clear)
    assert done == ["start", "clear", "start"]


def test_what_fails_for_another_reason_is_not_tried_again() -> None:
    done, start, clear = starting("no such port")
    with pytest.raises(Exception, match="no such port"):
        start_patiently(start, clear)
    assert done == ["start"]
