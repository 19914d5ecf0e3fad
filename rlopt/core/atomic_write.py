"""Files that exist whole or not at all, also after a power cut."""

import os
from collections.abc import Iterator
from pathlib import Path


def at_home(text: str) -> Path:
    """The path that a user typed, with the home for `~`: a shell does not expand it after an equals sign."""
    return Path(text).expanduser()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically: a reader, or an interruption, finds either the old content or the new."""
    aside = path.with_name(f".{path.name}.aside")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")  # lone surrogates are written as escapes
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def all_to_disk(folder: Path) -> dict[str, int]:
    """Flush `folder` and everything in it to disk. Returns its files by relative path, with their sizes in bytes."""
    for path in (*_inside(folder), folder):
        to_disk(path)
    return {str(path.relative_to(folder)): path.stat().st_size for path in _inside(folder) if path.is_file()}


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_dir())
