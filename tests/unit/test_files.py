"""Files that stand there whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from rlopt.core.atomic_write import all_to_disk, at_home, write_whole


def test_an_interruption_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "one")

    def interrupted(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "two")
    assert file.read_text() == "one"


def test_half_a_character_is_written_as_json_escapes_it_and_comes_back(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", json.dumps({"answer": "3\ud800é"}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"answer": "3\ud800é"}


def test_a_folder_is_reported_with_its_files_and_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"123")
    (tmp_path / "a").write_bytes(b"")
    assert all_to_disk(tmp_path) == {"a": 0, "b/c": 3}


def test_the_users_home_is_found_after_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert [at_home(text) for text in ("~/x", "/x", "x~")] == [Path("/home/ada/x"), Path("/x"), Path("x~")]
