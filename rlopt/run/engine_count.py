"""How many engines a running run is asked to have."""

from pathlib import Path

from rlopt.core.atomic_write import write_whole
from rlopt.core.errors import RloptError

FILE = "engines.txt"
"""The file in a run's folder with the number of engines that it should have."""


def wanted_engines(run: Path, default: int) -> int:
    """The number that `ask_for` wrote into the run's folder, else `default`."""
    try:
        said = (run / FILE).read_text().strip()
    except FileNotFoundError:
        return default
    if not said.isdecimal() or int(said) < 1:
        raise RloptError(f"{run / FILE}: {said!r} is not a number of engines; python -m rlopt.engines {run} {default}")
    return int(said)


def ask_for(run: Path, count: int) -> None:
    """Make the run `run` use `count` engines from its next synchronization on."""
    if not (run / "config.yaml").is_file():
        raise RloptError(f"{run}: holds no run; give the folder of one that is going on")
    if count < 1:
        raise RloptError(f"{count} engines: a run needs one at least")
    write_whole(run / FILE, str(count))


def forget_wish(run: Path) -> None:
    """Remove the number, so that a newly set `rollout.engines` counts again."""
    (run / FILE).unlink(missing_ok=True)
