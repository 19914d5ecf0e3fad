"""`python -m rlopt.engines RUN COUNT`: change the number of engines of a running run, from its next synchronization on."""

import argparse
import sys

from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError
from rlopt.run.engine_count import ask_for


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.engines", description=__doc__)
    parser.add_argument("run", type=at_home, metavar="RUN", help="the folder of a running run")
    parser.add_argument("count", type=int, metavar="COUNT", help="engines that it should have")
    arguments = parser.parse_args()
    try:
        ask_for(arguments.run, arguments.count)
    except RloptError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
