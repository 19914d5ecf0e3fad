"""`python -m rlopt.reproduce RUN [--steps FIRST:LAST]`: make steps of a recorded run again, and compare every number.

It starts the learner alone, from the newest checkpoint before FIRST, and learns from the groups that the run kept
(`run.record=true`), asynchronous runs too. On CPU the numbers are the same to the last bit; it exits with 1 where one is not.
"""

import argparse
import sys
from pathlib import Path

from rlopt.cluster import fork_server
from rlopt.config import cli
from rlopt.core import signals
from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError

SHOWN = 10
"""Differences that are printed."""


def steps(text: str) -> tuple[int, int | None]:
    """`FIRST:LAST`, each of which may be missing."""
    first, colon, last = text.partition(":")
    try:
        found = int(first or 1), int(last) if last else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: want FIRST:LAST, such as 21:40") from None
    if not colon:
        return found[0], found[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.reproduce", description=__doc__)
    parser.add_argument("run", type=at_home, metavar="RUN", help="the folder of a run with run.record=true")
    parser.add_argument("--steps", type=steps, default=(1, None), metavar="FIRST:LAST", help="to make again; default: all")
    arguments = parser.parse_args()
    signals.interrupts()
    console = cli.Shown()
    try:
        first, last = arguments.steps
        same = _reproduce(arguments.run.resolve(), first, last, console)
    except RloptError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing of the run was changed", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if same else 1)


def _reproduce(run: Path, first: int, last: int | None, console: cli.Shown) -> bool:
    from rlopt.run import reproduction

    config = reproduction.config_of(run)
    with fork_server.imported(config.cluster, "rlopt.learner.preload"):
        found = reproduction.reproduce(run, config, first, last, console)
    console.print(f"steps {found.first} to {found.last}, made again from {found.origin}", highlight=False, soft_wrap=True)
    for one in found.differences[:SHOWN]:
        console.print(f"step {one.step}: {one.metric} was {one.there}, is {one.here}", highlight=False, soft_wrap=True)
    verdict = "all equal to the last bit" if not found.differences else f"{len(found.differences)} differ"
    console.print(f"{found.compared} numbers compared: {verdict}", highlight=False)
    return not found.differences


if __name__ == "__main__":
    main()
