"""How many engines a run shall have."""

from pathlib import Path

import pytest

from rlopt.core.errors import RloptError
from rlopt.run.engine_count import ask_for, wanted_engines


def test_a_run_has_the_engines_of_its_config_until_others_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    assert wanted_engines(tmp_path, 2) == 2
    ask_for(tmp_path, 3)
    assert wanted_engines(tmp_path, 2) == 3


def test_a_folder_without_a_run_and_a_count_of_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="holds no run; give the folder of one that is going on"):
        ask_for(tmp_path, 2)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(RloptError, match="0 engines: a run needs one at least"):
        ask_for(tmp_path, 0)


@pytest.mark.parametrize("said", ["three", "0", "", "-1", "2.5"])
def test_what_somebody_else_wrote_there_is_refused_in_one_line(tmp_path: Path, said: str) -> None:
    (tmp_path / "engines.txt").write_text(said)
    with pytest.raises(RloptError, match=rf"engines.txt: '{said}' is not a number of engines; python -m rlopt.engines \S+ 2$"):
        wanted_engines(tmp_path, 2)
