"""Files that stand there whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from rlopt.core.atomic_write import all_to_disk, at_home, prepare_output, write_whole, writing
from rlopt.core.errors import RloptError


def test_an_interruption_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "one")

    def interrupted(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "two")
    assert file.read_text() == "one"


def test_a_full_disk_leaves_the_earlier_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "one")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = rf"^--out={file}: cannot be written \(No space left on device\); choose another place, or mend this one; it was 7$"
    with pytest.raises(RloptError, match=told), writing("--out", file, "; it was 7"):
        write_whole(file, "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "one")]


def test_an_output_is_refused_before_the_work_where_it_cannot_be_written(tmp_path: Path) -> None:
    prepare_output("--out", tmp_path / "new" / "folder" / "a.txt")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    for where in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt", Path("/proc/a.txt")):
        with pytest.raises(RloptError, match=rf"^--out={where}: cannot be written \(.*\); choose another place"):
            prepare_output("--out", where)


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
