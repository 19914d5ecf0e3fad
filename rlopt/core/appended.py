"""A file that grows at its end, and that waits for room where the disk is full."""

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)

MOST = 2**28
"""Bytes that wait at most."""


class AppendedFile:
    """Every `write` reaches the file at once, so that an interruption loses nothing that was written before it.

    It is opened for each: one that was removed meanwhile is noticed, and not made again.
    """

    def __init__(self, path: Path, waits: bool = False) -> None:
        """`waits`: keep what a full disk has no room for, and write it first when there is room; else raise."""
        self._path, self._waits, self._kept = path, waits, b""
        path.touch()

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            OSError: it cannot be written, or was removed; on a full disk only where nothing waits, or `MOST` bytes do.
        """
        self._kept += data
        try:
            while self._kept:
                self._kept = self._kept[self._append(self._kept) :]
        except OSError as error:
            if error.errno not in FULL or not self._waits or len(self._kept) > MOST:
                raise

    def _append(self, data: bytes) -> int:
        """Write what there is room for; how many bytes."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(file, data)
        finally:
            os.close(file)
