"""A run's folder belongs to one process at a time: two would write one set of checkpoints, and remove each other's."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlopt.core.errors import RloptError

LOCK, OWNER = ".lock", ".owner"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """In here the folder is ours. The system takes the lock from a process that died. A folder that stays empty is removed.

    Raises:
        RloptError: another process has it, or the folder cannot be written.
    """
    there = run.is_dir()
    lock = FileLock(run / LOCK)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (run / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        owner = (run / OWNER).read_text() if (run / OWNER).is_file() else "another process"
        raise RloptError(f"run.dir={run}: is in use by {owner}; end it, or choose another run.dir") from None
    except OSError as error:
        raise RloptError(f"run.dir={run}: cannot be written ({error.strerror}); choose another run.dir") from error
    try:
        yield
    finally:
        with suppress(OSError):  # somebody removed the folder
            if not there and {file.name for file in run.iterdir()} <= {LOCK, OWNER}:
                for name in (LOCK, OWNER):
                    (run / name).unlink(missing_ok=True)
                run.rmdir()
        lock.release()
