"""What every command does around its work: Hydra's command line before it, one line on standard error after it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlopt.errors import RloptError
from rlopt.settings import conf_dir, translate

C = TypeVar("C")


def compose(primary: str) -> list[DictConfig]:
    """The configs that the command line makes of `conf/<primary>.yaml`: one, or with `--multirun` several."""
    composed: list[DictConfig] = []
    hydra.main(config_path=str(conf_dir()), config_name=primary, version_base="1.3")(composed.append)()
    return composed


def run(primary: str, typed: Callable[[DictConfig], C], work: Callable[[C], None], interrupted: str) -> None:
    """Do `work` for each config, and exit with one line when the user can do something about how it ended.

    `interrupted` is what a user who pressed Ctrl-C should know.
    """
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell started us with it ignored
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us here instead of being printed by Hydra
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a Hub that is not reached is an error of ours, in one line
    try:
        for config in [typed(composed) for composed in compose(primary)]:
            work(config)
    except RloptError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {translate(error, primary)}")
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
