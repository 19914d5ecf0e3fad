"""`python -m rlopt.pairs [key=value ...]`: make preference rows at the first wrong step, for Step-DPO."""

from omegaconf import DictConfig
from rich.table import Table

from rlopt.cluster import fork_server
from rlopt.config import cli
from rlopt.config.commands import PairsJob
from rlopt.config.compose import typed_job
from rlopt.core.user_code import load
from rlopt.rewards import pool


def typed(composed: DictConfig) -> PairsJob:
    """The typed config; every wrong key or value is refused with its full name."""
    return typed_job(PairsJob, composed)


def make(job: PairsJob) -> None:
    """Make the rows that one config asks for, and say what was dropped."""
    pool.load(job.reward.fn, job.reward.weights)
    for key, name in (("pairs.split", job.pairs.split), ("pairs.locate", job.pairs.locate)):
        load(key, name)
    console = cli.Shown()
    with fork_server.imported(job.cluster, "rlopt.rollout.preload"):
        from rlopt.step_pairs import runner  # heavy: only once the config and its functions are known to be good

        outcome = runner.make_pairs(job, console)
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    for count, meaning in outcome.table:
        table.add_row(f"{count:,}", meaning)
    console.print(table)
    lines = [*map(str, outcome.files)]
    if outcome.made:
        rate = outcome.made / outcome.seconds
        lines.append(f"{outcome.made} rows made in {outcome.seconds:.1f} s, {rate:.1f} rows/s, engines' start not counted")
    if outcome.rows < job.pairs.count:
        lines.append(
            f"pairs.count={job.pairs.count}: the data gave {outcome.rows} rows; for more raise data.size (or give more data), "
            "pairs.attempts or pairs.continuations"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def main() -> None:
    cli.run("pairs", typed, make, "finished chunks are kept, and the same command continues after them")


if __name__ == "__main__":
    cli.whole_process(main)
