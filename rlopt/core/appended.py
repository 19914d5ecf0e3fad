"""A file that grows at its end, and that waits for room where the disk is full."""

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)

MOST = 2**28
"""Bytes that wait at most."""


class AppendedFile:
    """Every `write` reaches the file at once, so that an interruption loses nothing that was written before it."""

    def __init__(self, path: Path, waits: bool = False) -> None:
        """`waits`: keep what a full disk has no room for, and write it first when there is room; else raise."""
        self._file = path.open("ab", buffering=0)
        self._waits, self._kept = waits, b""

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            OSError: it cannot be written; on a full disk only where nothing waits, or `MOST` bytes do.
        """
        self._kept += data
        try:
            while self._kept:
                self._kept = self._kept[self._file.write(self._kept) :]
        except OSError as error:
            if error.errno not in FULL or not self._waits or len(self._kept) > MOST:
                raise

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Write what waits, if there is room, and close the file."""
        try:
            self.write(b"")
        finally:
            self._file.close()
