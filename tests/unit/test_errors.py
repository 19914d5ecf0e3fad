"""What an error says in one line."""

import pytest

from rlopt.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  two \nthree"), "two"),
        (ConnectionResetError(), "ConnectionResetError"),
        (ValueError(" \n "), "ValueError"),
        ("long " * 100, "long " * 59 + "lo..."),
    ],
)
def test_an_error_is_reported_by_its_first_line_or_its_type(error: BaseException | str, line: str) -> None:
    assert first_line(error) == line
