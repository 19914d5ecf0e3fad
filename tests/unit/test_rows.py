"""Rows of files, as other tools write them."""

import gzip
import json
from pathlib import Path

import pytest

from rlopt.core.errors import RloptError
from rlopt.data.readers import look_up, read_rows

ROWS = [{"question": "1+1", "answer": "2"}, {"question": "2+2", "answer": "4"}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_parquet_csv_and_json_say_the_same_as_json_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("question,answer\n1+1,2\n2+2,4\n")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("rows.parquet", "rows.json", "rows.jsonl", "rows.csv"):
        read = [
            (number, {key: str(value) for key, value in row.items()}) for number, row in read_rows("k", str(tmp_path / name))
        ]
        assert read == list(enumerate(ROWS, 1)), name


def test_a_folder_has_splits(tmp_path: Path) -> None:
    for split, row in zip(("train", "test"), ROWS, strict=True):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert read_rows("k", str(tmp_path / "set"), split="test") == [(1, ROWS[1])]
    with pytest.raises(RloptError, match=r"k=.*set: cannot be read \(ValueError: Unknown split .*nosuch"):
        read_rows("k", str(tmp_path / "set"), split="nosuch")


@pytest.mark.parametrize(("name", "message"), [
    ("/nowhere", "k=/nowhere: no such file or folder; give"),
    ("nowhere.jsonl", "k=nowhere.jsonl: no such file"),
    ("nowhere.parquet", "k=nowhere.parquet: no such file"),
    ("a/b/c", "k=a/b/c: no such file or folder; give"),
])  # fmt: skip
def test_what_is_not_there_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(RloptError, match=message):
        read_rows("k", name)


def test_a_data_set_of_the_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RloptError, match=r"k=nobody/nothing: cannot be read \(.*\); check name, data.subset, .*") as refusal:
        read_rows("k", "nobody/nothing")
    assert "\n" not in str(refusal.value)


def test_a_file_of_another_type_than_its_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(RloptError, match=r"rows.parquet: cannot be read \(.*\); check the file"):
        read_rows("k", str(tmp_path / "rows.parquet"))


def test_dots_look_inside_and_a_column_with_a_dot_comes_first() -> None:
    assert look_up({"a": {"b": 1}}, "a.b") == 1
    assert look_up({"a": {"b": 1}, "a.b": 2}, "a.b") == 2
    assert look_up({"a": 1}, "a.b") is None


def test_files_that_are_compressed_separated_otherwise_or_saved_by_the_library_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    lines = "".join(json.dumps(row) + "\r\n" for row in ROWS)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"question,answer\n1+1,2\n2+2,4\n"))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "rows.tsv").write_text("question\tanswer\n1+1\t2\n2+2\t4\n")
    (tmp_path / "rows.csv").write_text("question;answer\n1+1;2\n2+2;4\n")
    saved = datasets.Dataset.from_list(ROWS)
    saved.to_parquet(tmp_path / "rows.pq")
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "splits")
    for name in ("rows.jsonl.gz", "rows.csv.gz", "rows.json.gz", "rows.tsv", "rows.csv", "rows.pq", "saved", "splits"):
        assert [row for _, row in read_rows("k", str(tmp_path / name))] == ROWS, name
    assert len(read_rows("k", str(tmp_path / "splits"), split="test")) == 1
    with pytest.raises(RloptError, match=r"splits: cannot be read \(KeyError: .*dev"):
        read_rows("k", str(tmp_path / "splits"), split="dev")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    with pytest.raises(RloptError, match=r"cut.jsonl.gz: cannot be read \(.*ended before.*\); check the file"):
        read_rows("k", str(tmp_path / "cut.jsonl.gz"))
    monkeypatch.setattr("rlopt.data.readers.MOST_UNPACKED", 20)
    with pytest.raises(RloptError, match=r"rows.jsonl.gz: unpacks to more than .* GiB; unpack it, if that is right"):
        read_rows("k", str(tmp_path / "rows.jsonl.gz"))


def test_a_cell_of_csv_is_the_text_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('\ufeffquestion,answer\n"a\nb",2\nc,2.5\nd,\ne,007\nf,None\n')
    assert [row["answer"] for _, row in read_rows("k", str(tmp_path / "rows.csv"))] == ["2", "2.5", None, "007", "None"]
    (tmp_path / "long.csv").write_text("question,answer\n1+1,2,3\n")
    with pytest.raises(
        RloptError,
        match=r"k=.*long.csv: cannot be read \(CSV parse error: Row #2: Expected 2 columns, got 3: 1\+1,2,3\); check",
    ):
        read_rows("k", str(tmp_path / "long.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"question\n\xff\n")
    with pytest.raises(RloptError, match=r"bytes.csv: cannot be read \(.*UTF-?8.*\); check the file"):
        read_rows("k", str(tmp_path / "bytes.csv"))


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "q"}\r\n{"prompt": "r"}\r\n')
    assert read_rows("data.train", str(file)) == [(1, {"prompt": "q"}), (2, {"prompt": "r"})]


@pytest.mark.parametrize(("other", "why"), [
    ('{"prompt": "q", "answer": "3", "level": 1}', "its files have different columns: b.jsonl also has level, unlike a.jsonl"),
    ('{"prompt": "q", ', r"b.jsonl cannot be read \("),
])  # fmt: skip
def test_a_folder_of_which_one_file_does_not_fit_is_reported_with_that_file_and_why(
    other: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "answer": "2"}\n')
    (tmp_path / "b.jsonl").write_text(other + "\n")
    with pytest.raises(RloptError, match=f"data.train={tmp_path}: {why}"):
        read_rows("data.train", str(tmp_path))
