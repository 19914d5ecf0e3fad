"""`python -m rlopt.train +algo=NAME [key=value ...]`: train."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from rlopt.errors import RloptError
from rlopt.settings import conf_dir, translate, typed


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def run(composed: DictConfig) -> None:
    config = typed(composed)
    from rlopt import launch  # heavy: only once the config is known to be good

    console = Console()
    outcome = launch.train(config, console)
    console.print(
        f"training reward {outcome.first['reward/mean']:.3f} -> {outcome.last['reward/mean']:.3f} "
        f"(step {outcome.first['step']} -> {outcome.last['step']})\n"
        f"metrics     {outcome.folder / 'metrics.jsonl'}\n"
        f"checkpoint  {outcome.checkpoint}" + (f"\nW&B         {outcome.wandb}" if outcome.wandb else ""),
        highlight=False,
    )


def main() -> None:
    """Run and end with one line on standard error when the user can do something about it."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us here instead of being printed by Hydra
    try:
        run()
    except RloptError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {translate(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the last checkpoint stands; the same command goes on from it")


if __name__ == "__main__":
    main()
