"""Rows of data sets as they are stored: JSON lines, parquet, CSV and JSON files, folders of them or those that the datasets
library saved, data sets of the Hub.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlopt.core.errors import RloptError, first_line

Row = tuple[int, dict[str, Any]]
"""Number, from 1 (of the line in JSON lines), and columns."""

BUILDERS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".json": "json"}
"""Suffix to the reader that the datasets library has for it. JSON lines, JSON and CSV may be compressed, with `.gz` behind."""


MOST_UNPACKED = 8 * 2**30
"""Bytes that a compressed file may have when it is unpacked: a small one can be made to fill any memory."""


def read_rows(key: str, name: str, subset: str | None = None, split: str = "train") -> list[Row]:
    """All rows of what the config key `key` names: a file, a folder, or a data set of the Hub.

    Args:
        subset, split: of a data set of the Hub, or of a folder. A file has neither.

    Raises:
        RloptError: there is no such file or data set, it cannot be reached or read, or it has no rows.
    """
    path = Path(name).expanduser()
    suffix = _suffix(path)
    if suffix == ".jsonl" or (path.is_file() and suffix not in BUILDERS):
        return read_jsonl(key, name)
    if suffix in BUILDERS and not path.is_file():
        raise RloptError(f"{key}={name}: no such file; give one, a data set of the Hub, or arithmetic for the embedded task")
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise RloptError(
            f"{key}={name}: no such file or folder; give a .jsonl, .parquet, .csv or .json file, a data set of the Hub "
            "(owner/name), or arithmetic for the embedded task"
        )
    if BUILDERS.get(suffix) == "csv" and path.is_file():
        found = _read_csv(f"{key}={name}", path)
    else:
        found = _load(f"{key}={name}", path, name, subset, split)
    if not found:
        raise RloptError(f"{key}={name}: has no rows")
    return list(enumerate(found, 1))


def _suffix(path: Path) -> str:
    """What a file holds, whether compressed or not."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _contents(where: str, path: Path) -> bytes:
    """The bytes of a file, unpacked."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RloptError(f"{where}: cannot be read ({first_line(error)}); check the file") from error
    if len(data) > MOST_UNPACKED:
        raise RloptError(f"{where}: unpacks to more than {MOST_UNPACKED / 2**30:.2g} GiB; unpack it, if that is right")
    return data


def read_jsonl(key: str, name: str) -> list[Row]:
    """All rows of the JSONL file `name`, which the config key `key` names. Our own reader: its errors name the row."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise RloptError(f"{key}={name}: no such file; give a JSONL file, or arithmetic for the embedded task")
    rows = []
    try:
        text = _contents(f"{key}={name}", path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise RloptError(f"{key}={name}: is not UTF-8 text ({error.reason} at byte {error.start}); want JSON lines") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut inside a text at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RloptError(f"{key}={name}: row {number} is not JSON ({error}); want one object a line") from None
        if not isinstance(row, dict):
            raise RloptError(f"{key}={name}: row {number} is not a JSON object; want one object a line")
        rows.append((number, row))
    if not rows:
        raise RloptError(f"{key}={name}: the file has no rows; put one JSON object a line")
    return rows


def _read_csv(where: str, path: Path) -> list[dict[str, Any]]:
    """Every cell as text, None where it is empty. The datasets library would guess types, and turn 2 into 2.0."""
    import pyarrow
    from pyarrow import csv

    data = _contents(where, path)
    header, _, _ = data.partition(b"\n")
    signs = "\t" if _suffix(path) == ".tsv" else [sign for sign in ",;\t" if sign.encode() in header]
    divided = csv.ParseOptions(delimiter=signs[0] if signs else ",", newlines_in_values=True)
    # One block for the whole file: a row must not be larger than a block. One thread: errors then name the row.
    whole = csv.ReadOptions(use_threads=False, block_size=max(2**20, len(data) + 1))
    texts = csv.ConvertOptions(default_column_type=pyarrow.string(), strings_can_be_null=True, null_values=[""])
    try:
        rows: list[dict[str, Any]] = csv.read_csv(pyarrow.BufferReader(data), whole, divided, texts).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise RloptError(f"{where}: cannot be read ({first_line(error)}); check the file") from error
    return rows


def look_up(row: Mapping[str, Any], key: str) -> Any:
    """A column, or with dots a value inside it: `reward_model.ground_truth`. None if it is missing."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _load(where: str, path: Path, name: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    import datasets  # heavy, and not needed for JSON lines

    saved = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))  # by save_to_disk
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if path.is_file():
            loaded = datasets.load_dataset(BUILDERS[_suffix(path)], data_files=str(path), split="train")
        elif saved:
            loaded = datasets.load_from_disk(str(path))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(str(path) if path.is_dir() else name, subset, split=split)
    except Exception as error:  # each of its readers raises errors of its own
        if path.is_dir() and not saved and (mixed := _mixed(path)):
            raise RloptError(f"{where}: {mixed}; give all its files the same columns") from error
        reason = " ".join(str(error).split())[:300]
        out = "check the file" if path.exists() else "check name, data.subset, data.split and the network, or give a file"
        raise RloptError(f"{where}: cannot be read ({type(error).__name__}: {reason}); {out}") from error
    rows: list[dict[str, Any]] = loaded.to_list()
    return rows


def _mixed(folder: Path) -> str | None:
    """Which of a folder's files has other columns than the first, or another type in one; None: they agree."""
    import datasets

    readers = {**BUILDERS, ".jsonl": "json"}
    first, columns = "", dict[str, str]()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in readers):
        try:
            features = datasets.load_dataset(readers[file.suffix], data_files=str(file), split="train").features
        except Exception as error:  # each of its readers raises errors of its own
            return f"{file.name} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        here = {name: str(kind.dtype if hasattr(kind, "dtype") else kind) for name, kind in features.items()}
        if not first:
            first, columns = file.name, here
        more, less = sorted(here.keys() - columns.keys()), sorted(columns.keys() - here.keys())
        other = sorted(name for name in here.keys() & columns.keys() if here[name] != columns[name])
        told = [f"also has {', '.join(more)}"] * bool(more) + [f"lacks {', '.join(less)}"] * bool(less)
        told += [f"has {name} as {here[name]} and not {columns[name]}" for name in other]
        if told:
            return f"its files have different columns: {file.name} {' and '.join(told)}, unlike {first}"
    return None
