"""What a command leaves behind: its processes, known by a mark in their environment, and its files in shared memory.

Process groups and parents are not enough to find the processes: whatever a worker or a user's function starts may begin a
session of its own, and may outlive who started it. What they were started with stays readable, but where a program writes
its title over it: `marking` forbids that to Ray's and vLLM's.

Run as a program it waits for the end of a command and removes both: a command that was killed cannot do so itself. It imports
nothing but Python's own modules.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import process, shared_memory
from pathlib import Path

MARK = "RLOPT_MARK"
"""Environment variable that every process has which was started for a command."""

FOLDERS = (Path("/dev/shm"), Path("/tmp"))
NAMED = re.compile(r"(?:sem\.)?rlopt-([0-9a-f]+-([0-9a-f]+)-([0-9a-f]+))-")


@cache
def mark() -> str:
    """The mark of this command: its process namespace, its process, and when that began. No other command has it, ever."""
    return f"{_namespace():x}-{os.getpid():x}-{_began(os.getpid()):x}"


def marking(word: str) -> dict[str, str]:
    """The environment variables that give this mark to what is started with them.

    The library setproctitle, and Ray's copy of it, write a title into the memory of arguments and environment, and clear the
    rest of it. SPT_NOENV has them leave the environment as it is.
    """
    return {MARK: word, "SPT_NOENV": "1"}


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def shared_prefix() -> str:
    """How the names of this process's files begin in shared memory, and in /tmp."""
    return f"rlopt-{os.environ[MARK]}-" if MARK in os.environ else "rlopt-"


def name_shared_memory() -> None:
    """Have Python name shared memory and semaphores of this process, and of its children, so that `sweep` finds them."""
    if MARK in os.environ:
        prefix = "/" + shared_prefix()
        shared_memory._SHM_NAME_PREFIX = prefix  # type: ignore[attr-defined]
        shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + 8  # type: ignore[attr-defined]
        process.current_process()._config["semprefix"] = prefix.removesuffix("-")  # type: ignore[attr-defined]


def marked(word: str) -> set[int]:
    """The processes with this mark, as far as they are ours to read."""
    return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_marked(pid, word)}


def is_marked(pid: int, word: str, name: str = MARK) -> bool:
    """Whether this process has this mark as the variable `name`; not if it has ended or is not ours to read.

    While a process executes a program, neither its environment nor its arguments can be read for a moment: they are read again.
    """
    ends, executed = time.monotonic() + 0.2, False
    with suppress(OSError):
        while not (found := _read(pid, "environ")) and not executed and time.monotonic() < ends:
            os.readlink(f"/proc/{pid}/exe")  # raises if there is none: it has ended, or is the kernel's
            executed = bool(_read(pid, "cmdline"))
            time.sleep(0.001)
        return f"{name}={word}".encode() in found.split(b"\0")
    return False


def _read(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def sweep(word: str, spare: Collection[int] = (), seconds: float = 5.0) -> None:
    """End every process with this mark but this one and `spare`, and then, if none is spared, remove their files."""
    ends = time.monotonic() + seconds
    while (left := marked(word) - {os.getpid(), *spare}) and time.monotonic() < ends:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if not spare:
        _remove(lambda found: found[1] == word)


def remove_sessions(root: Path) -> None:
    """Remove the folders, with logs, that Ray left for commands of ours that are gone; not the newest `KEPT_SESSIONS`."""
    gone = [note.parent for note in root.glob(f"session_*/{OURS}") if _is_stale(NAMED.match(note.read_text()))]
    for folder in sorted(gone)[:-KEPT_SESSIONS]:
        shutil.rmtree(folder, ignore_errors=True)


KEPT_SESSIONS, OURS = 3, ".rlopt"


def remove_stale() -> None:
    """Remove the files of commands that are gone, with whoever should have swept behind them."""
    _remove(_is_stale)


def _is_stale(found: re.Match[str] | None) -> bool:
    """Whether a name is that of a command of this machine, or container, that is gone."""
    mine = found and found[1].startswith(f"{_namespace():x}-")
    return bool(found and mine and _began(int(found[2], 16)) != int(found[3], 16))


def _remove(is_left: Callable[[re.Match[str]], bool]) -> None:
    for path in (path for folder in FOLDERS if folder.is_dir() for path in folder.iterdir()):
        found = NAMED.match(path.name)
        if found and is_left(found):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def swept() -> Iterator[None]:
    """Whatever is started with the mark in here ends with it, also where this process is killed."""
    remove_stale()
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark()],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
    try:
        yield
    finally:
        sweep(mark())
        guard.kill()
        guard.communicate()


def _guard(word: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # of those who end all processes, one after the other
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # ends with the command
    sweep(word)


if __name__ == "__main__":
    _guard(sys.argv[1])
