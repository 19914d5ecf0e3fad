"""`python -m rlopt.evaluate [run=DIR] [key=value ...]`: avg@k, pass@k and greedy answers on held-out prompts."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from rich.table import Table

from rlopt.cluster import fork_server
from rlopt.config import cli
from rlopt.config.commands import EvaluateJob
from rlopt.config.compose import typed_job
from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError

SHARED = ("data", "reward", "env", "rollout", "eval", "cluster")
"""Sections that the evaluation of a run takes over from it."""


def typed(composed: DictConfig) -> EvaluateJob:
    """The typed config; every wrong key or value is refused with its full name."""
    return typed_job(EvaluateJob, composed)


def of_run(run: str, which: str) -> dict[str, Any]:
    """The config for the evaluation of a checkpoint of a run: that of the run, but for the model.

    Raises:
        RloptError: there is no such run or checkpoint.
    """
    from rlopt.data.prompts import EMBEDDED
    from rlopt.run import checkpoint
    from rlopt.tracking.run_folder import config_of

    folder = at_home(run)
    chosen = checkpoint.choose(folder, which)
    kept = config_of(folder)
    config = {section: kept[section] for section in SHARED if section in kept}
    train = config["data"]["train"]
    config["data"]["eval"] = config["data"]["eval"] or (train if train in EMBEDDED else None)
    config["cluster"]["gpus_per_learner"] = 0.0
    config["rollout"]["sleep"] = False
    model = {"path": str((chosen / "hf").resolve()), "dtype": kept["model"]["dtype"]}
    return {**config, "model": model, "run": {"seed": kept["run"]["seed"]}}


def evaluate(job: EvaluateJob) -> None:
    """Evaluate as one config says, and show the numbers."""
    console = cli.Shown()
    with fork_server.imported(job.cluster, "rlopt.rollout.preload"):
        from rlopt.evaluation import runner  # heavy: only once the config is known to be good

        verdict = runner.evaluate(job, console)
    table = Table(box=None, padding=(0, 1))
    for name in ("data", "metric", "value", "95% of resamplings", "prompts"):
        table.add_column(name, justify="left" if name in ("data", "metric") else "right")
    for row in verdict.rows:
        interval = f"{row.estimate.low:.3f} to {row.estimate.high:.3f}"
        table.add_row(row.data, row.metric, f"{row.estimate.value:.3f}", interval, f"{row.prompts:,}")
    console.print(table)
    lines = [f"{name}: {count} answers have no reward" for name, count in verdict.unscored.items() if count]
    if verdict.truncated:
        lines += [f"{verdict.truncated:.1%} of the answers were cut at rollout.max_new_tokens={job.rollout.max_new_tokens}"]
    rate = f"{verdict.tokens / verdict.seconds:,.0f} tokens/s"
    lines += [f"{verdict.tokens:,} tokens in {verdict.seconds:.1f} s, {rate}, engines' start not counted"]
    console.print("\n".join([*lines, str(verdict.numbers), str(verdict.answers)]), highlight=False, soft_wrap=True)


def main() -> None:
    arguments = [f"evaluate.{argument}" if argument.startswith("run=") else argument for argument in sys.argv[1:]]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    with tempfile.TemporaryDirectory() as folder:
        if run := given.get("evaluate.run"):
            try:
                config = of_run(run, given.get("evaluate.checkpoint", "latest"))
            except RloptError as error:
                sys.exit(f"error: {error}")
            file = Path(folder) / "of" / "run.yaml"
            file.parent.mkdir()
            file.write_text("# @package _global_\n" + yaml.safe_dump(config))
            arguments = [f"hydra.searchpath=[file://{folder}]", "+of=run", *arguments]  # what is named later counts
        cli.run("evaluate", typed, evaluate, "nothing was written; run the same command again", arguments)


if __name__ == "__main__":
    cli.whole_process(main)
