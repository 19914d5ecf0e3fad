"""`python -m rlopt.engines RUN COUNT`: give a run that is going on more or fewer engines, from its next synchronisation on."""

import argparse
import sys
from pathlib import Path

from rlopt.errors import RloptError
from rlopt.files import at_home, write_whole

FILE = "engines.txt"
"""In a run's folder: the number of engines that it shall have."""


def wanted_engines(run: Path, default: int) -> int:
    """What `ask_for` wrote into the run's folder, else `default`."""
    try:
        said = (run / FILE).read_text().strip()
    except FileNotFoundError:
        return default
    if not said.isdecimal() or int(said) < 1:
        raise RloptError(f"{run / FILE}: {said!r} is no number of engines; python -m rlopt.engines {run} {default}")
    return int(said)


def ask_for(run: Path, count: int) -> None:
    """Have the run `run` use `count` engines from its next synchronisation on."""
    if not (run / "config.yaml").is_file():
        raise RloptError(f"{run}: holds no run; give the folder of one that is going on")
    if count < 1:
        raise RloptError(f"{count} engines: a run needs one at least")
    write_whole(run / FILE, str(count))


def forget_wish(run: Path) -> None:
    """Let `rollout.engines` count again in the run `run`, where it was set anew."""
    (run / FILE).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.engines", description=__doc__)
    parser.add_argument("run", type=at_home, metavar="RUN", help="the folder of a run that is going on")
    parser.add_argument("count", type=int, metavar="COUNT", help="engines that it shall have")
    arguments = parser.parse_args()
    try:
        ask_for(arguments.run, arguments.count)
    except RloptError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
