"""`python -m rlopt.train +algo=NAME [key=value ...]`: train."""

import os
import signal
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from rlopt.errors import RloptError
from rlopt.settings import conf_dir, translate, typed


def compose() -> list[DictConfig]:
    """The configs that the command line asks for: one, or with `--multirun` several."""
    composed: list[DictConfig] = []
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(composed.append)()
    return composed


def run() -> None:
    """Train each of them, one after another."""
    for config in [typed(one) for one in compose()]:
        from rlopt import launch  # heavy: only once the config is known to be good

        console = Console()
        outcome = launch.train(config, console)
        lines = [
            f"{outcome.headline:<17}{outcome.before:.3f} before, {outcome.after:.3f} after "
            f"(means of the first and last {outcome.span} steps)",
            f"metrics          {outcome.folder / 'metrics.jsonl'}",
            f"checkpoint       {outcome.checkpoint}",
            f"W&B              {outcome.wandb or 'disabled'}",
        ]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run, and end with one line on standard error when the user can do something about it."""
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell started us with it ignored
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us here instead of being printed by Hydra
    try:
        run()
    except RloptError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {translate(error)}")
    except KeyboardInterrupt:
        print("interrupted: the last checkpoint stands, and the same command goes on from it", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
