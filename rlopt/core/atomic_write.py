"""Files that exist whole or not at all, also after a power cut."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlopt.core.errors import RloptError, first_line


def at_home(text: str) -> Path:
    """The path that a user typed, with the home for `~`: a shell does not expand it after an equals sign."""
    return Path(text).expanduser()


def prepare_output(key: str, path: Path) -> None:
    """Make the folder of an output and write into it, before the work whose results go there.

    Raises:
        RloptError: that cannot be done.
    """
    with writing(key, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"\0")


@contextmanager
def writing(key: str, path: Path, found: str = "") -> Iterator[None]:
    """In here an output is written.

    Args:
        key: the setting that names it.
        found: what would be lost with it, to be told.

    Raises:
        RloptError: it cannot be written: no room, no rights, a file in the place of a folder.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or first_line(error)
        raise RloptError(f"{key}={path}: cannot be written ({why}); choose another place, or mend this one{found}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically: a reader, or an interruption, finds either the old content or the new."""
    aside = path.with_name(f".{path.name}.aside")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")  # lone surrogates are written as escapes
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:  # no room: a part of it would only take more
        aside.unlink(missing_ok=True)
        raise
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
