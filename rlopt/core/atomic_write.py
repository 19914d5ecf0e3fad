"""Files that stand there whole or not at all, also after the power was cut."""

import os
from collections.abc import Iterator
from pathlib import Path


def at_home(text: str) -> Path:
    """The path that a user has written, `~` as the home: a shell leaves it where it follows an equals sign."""
    return Path(text).expanduser()


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; whoever reads meanwhile, or after an interruption, finds what stood there before."""
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a character stays an escape
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Return when a file, or which names a folder has, is on disk and no longer in this machine's memory alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def all_to_disk(folder: Path) -> dict[str, int]:
    """`to_disk` for everything in `folder`, and it; its files, by path within it, with their sizes in bytes."""
    for path in (*_inside(folder), folder):
        to_disk(path)
    return {str(path.relative_to(folder)): path.stat().st_size for path in _inside(folder) if path.is_file()}


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_dir())
