"""`python -m rlopt.bench +algo=NAME [--peer trl] [key=value ...]`: how fast this machine samples and learns, and could"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rlopt.cluster import fork_server
from rlopt.config import cli
from rlopt.config.compose import typed
from rlopt.config.schema import Config

if TYPE_CHECKING:
    from rlopt.run.benchmark import Speeds


def bench(config: Config, peer: bool) -> None:
    """Measure one config, and TRL on the same work if `peer`; print a table, and write `bench.json` to `run.dir`."""
    from rlopt.core.atomic_write import prepare_output, write_whole, writing

    console, file = cli.Shown(), Path(config.run.dir).resolve() / "bench.json"
    prepare_output("run.dir", file)
    with fork_server.imported(config.cluster, "rlopt.learner.preload", "rlopt.rollout.preload"):
        from rlopt.run.benchmark import benchmark  # heavy: only once the config is known to be good

        speeds = benchmark(config, console, peer)
    console.print(table(speeds, config))
    with writing("run.dir", file):
        write_whole(file, json.dumps(speeds.as_json(), indent=1))
    console.print(f"numbers  {file}", highlight=False, soft_wrap=True)


def table(speeds: "Speeds", config: Config) -> Table:
    """A row for each part: how long a window of `sync.interval` steps takes it, and how near that is to the machine's limit."""
    top = speeds.machine
    title = (
        f"{config.model.path}, {speeds.parameters:,} parameters; a window of {speeds.samples:,} samples of "
        f"{speeds.tokens / speeds.samples:.1f} tokens. The machine multiplies at {top.matrix / 1e9:,.0f} GFLOP/s and copies "
        f"{top.copy / 1e9:.1f} GB/s."
    )
    shown = Table(title=title, title_justify="left")
    for column in ("part", "seconds", "samples/s", "tokens/s", "of the limit"):
        shown.add_column(column, justify="left" if column == "part" else "right")
    learner_s, limit_s = speeds.reference_s + speeds.update_s, speeds.sampling_floor_s
    for part, seconds, floor in (
        (f"{speeds.engines} engine(s) alone", speeds.engine_s, limit_s),
        ("reference alone", speeds.reference_s, speeds.update_floor_s / 3),
        ("updates alone", speeds.update_s, speeds.update_floor_s),
        ("learner alone", learner_s, speeds.update_floor_s * 4 / 3),
    ):
        rates = (f"{count / seconds:,.0f}" for count in (speeds.samples, speeds.tokens))
        shown.add_row(part, f"{seconds:.2f}", *rates, f"{floor / seconds:.0%}")
    samples = speeds.together_samples / speeds.together_s
    limit = speeds.samples / (limit_s + speeds.update_floor_s * 4 / 3)
    tokens = speeds.together_tokens / speeds.together_s
    shown.add_row("together", f"{speeds.together_s:.2f}", f"{samples:,.0f}", f"{tokens:,.0f}", f"{samples / limit:.0%}")
    copied = speeds.sync_bytes * speeds.engines / top.copy
    shown.add_row("synchronization", f"{speeds.sync_s:.3f}", "", "", f"{copied / speeds.sync_s:.0%}")
    shown.caption = f"Together they reach {speeds.efficiency:.0%} of the slower of engine and learner alone."
    if speeds.core_efficiency is not None:
        shown.caption += f" They share {speeds.cores} core(s), and reach {speeds.core_efficiency:.0%} of what these could do."
    if speeds.peer:
        rates = (f"{count / speeds.peer.seconds:,.0f}" for count in (speeds.peer.samples, speeds.peer.tokens))
        shown.add_row("TRL", f"{speeds.peer.seconds * speeds.samples / speeds.peer.samples:.2f}", *rates, "")
        times = tokens / (speeds.peer.tokens / speeds.peer.seconds)
        shown.caption += f" They learn from {times:.2f} times as many tokens a second as TRL."
    shown.caption_justify = "left"
    return shown


def main() -> None:
    arguments, peer = sys.argv[1:], False
    if "--peer" in arguments:
        at = arguments.index("--peer")
        if arguments[at + 1 : at + 2] != ["trl"]:
            sys.exit("error: --peer: knows one other framework; want --peer trl")
        arguments, peer = arguments[:at] + arguments[at + 2 :], True
    cli.run("config", typed, partial(bench, peer=peer), "nothing was written", arguments)


if __name__ == "__main__":
    cli.whole_process(main)
