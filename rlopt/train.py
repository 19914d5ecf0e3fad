"""`python -m rlopt.train +algo=NAME [key=value ...]`: train."""

from pathlib import Path

from rlopt.cluster import fork_server
from rlopt.config import cli
from rlopt.config.compose import typed
from rlopt.config.schema import Config


def train(config: Config) -> None:
    """Train as one config says, and print where everything is."""
    console = cli.Shown()
    if config.trainer.dry_run:
        from rlopt.run import validate

        for subject, text in validate.dry_run(config, console):
            console.print(f"{subject:<10}{text}", highlight=False, soft_wrap=True)
        return
    with fork_server.imported(config.cluster, "rlopt.learner.preload", "rlopt.rollout.preload"):
        from rlopt.run import launch  # heavy: only once the config is known to be good

        outcome = launch.train(config, console)
    lines = [
        f"{outcome.headline:<19}{outcome.before:.3f} before, {outcome.after:.3f} after "
        f"(means of the first and last {outcome.span} steps)",
        f"metrics            {outcome.folder / 'metrics.jsonl'}",
        f"checkpoint         {outcome.checkpoint}",
        f"W&B                {outcome.wandb or 'disabled'}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def interrupted(config: Config) -> str:
    """What is left of a run that was interrupted."""
    if any(Path(config.run.dir).glob("checkpoints/step_*/manifest.json")):
        return "the last checkpoint is complete, and the same command continues from it"
    return "no checkpoint was saved yet, and the same command begins again"


def main() -> None:
    cli.run("config", typed, train, interrupted)


if __name__ == "__main__":
    cli.whole_process(main)
