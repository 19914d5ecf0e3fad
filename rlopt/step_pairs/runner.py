"""Makes step pairs with real engines: starts them, goes through the data chunk by chunk, saves each chunk, writes the files.

Beside `OUT` a folder `OUT.partial/` holds what is done: `config.json`, which decides the rows, and one file a chunk, each
written aside and renamed. A killed command continues after the last of them; the rows do not depend on where it was killed,
because every sample has its own seed and duplicates are found anew from the first chunk on. `OUT` itself appears last.
"""

import hashlib
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlopt.config.commands import PairsJob
from rlopt.core.samples import Prompt
from rlopt.core.signals import undisturbed
from rlopt.data.prompts import load_prompts
from rlopt.data.wording import wording
from rlopt.models.loading import context_length, find_model, load_tokenizer
from rlopt.rewards.pool import need_answers
from rlopt.step_pairs.files import ChunkStore, PairWriter
from rlopt.step_pairs.mining import MEANING, Recipe, make_chunk
from rlopt.step_pairs.tools import PairTools, Source
from rlopt.tracking.journal import TrainingBar

SPEED = (
    "cluster.address",
    "cluster.start_deadline_s",
    "cluster.step_deadline_s",
    "pairs.out",
    "reward.timeout_s",
    "reward.workers",
    "rollout.engines",
    "rollout.gpu_memory_share",
    "rollout.kv_cache_gib",
    "rollout.max_num_seqs",
)
"""Keys that an interrupted command may set anew; the others decide the rows."""


@dataclass(frozen=True)
class Outcome:
    """The result of a finished command.

    Attributes:
        files: rows to train on, rows to evaluate on, counts.
        table: every count with its meaning.
        rows: in both files together.
        made: rows that this process made; the others were made before.
        seconds: from its first request to its last row.
    """

    files: tuple[Path, Path, Path]
    table: list[tuple[int, str]]
    rows: int
    made: int
    seconds: float


def make_pairs(job: PairsJob, console: Console) -> Outcome:
    """The whole life of the command.

    Raises:
        RloptError: the config cannot be run, or a worker or a user's function failed; nothing is left running.
    """
    pairs, store = job.pairs, ChunkStore(Path(job.pairs.out))
    source = find_source(job, console)
    store.claim(_identity(job, source))
    chunks = [source.prompts[i : i + pairs.chunk] for i in range(0, len(source.prompts), pairs.chunk)]
    writer, done = PairWriter(pairs.count, pairs.eval_share), 0
    for chunk in store.chunks():
        writer.add(chunk)
        done += 1
    if done:
        console.print(f"continuing after chunk {done} with {writer.rows} rows", highlight=False)
    stood, seconds = writer.rows, 0.0
    if not writer.full and done < len(chunks):
        seconds = _make_chunks(job, source, chunks, done, writer, store, console)
    counts = {what: writer.counts[what] for what in MEANING}
    files = store.finish(writer.train, writer.eval, counts)
    return Outcome(
        files, [(counts[what], meaning) for what, meaning in MEANING.items()], writer.rows, writer.rows - stood, seconds
    )


def find_source(job: PairsJob, console: Console) -> Source:
    """The model and the prompts, in a seeded order."""
    folder = find_model(job.model.path, TrainingBar(console, f"training {job.model.path} (once on this machine)"))
    tokenizer = load_tokenizer(folder)
    room = context_length(folder) - job.rollout.max_new_tokens
    loaded = load_prompts(job.data, "data.train", job.data.train, job.run.seed, wording(job.data, tokenizer), room)
    need_answers(job.reward.fn, {} if loaded.answered else {"data.train": loaded.prompts[0]})
    prompts = list(loaded.prompts)
    random.Random(f"{job.run.seed}/pairs").shuffle(prompts)
    return Source(folder, tokenizer, prompts, max(len(prompt.token_ids) for prompt in prompts) + job.rollout.max_new_tokens)


def _make_chunks(
    job: PairsJob,
    source: Source,
    chunks: list[list[Prompt]],
    done: int,
    writer: PairWriter,
    store: "ChunkStore",
    console: Console,
) -> float:
    """Make the chunks after the first `done` until there are enough rows; the seconds that this took."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    recipe = Recipe(job.pairs.attempts, job.pairs.continuations, job.pairs.right, job.run.seed)
    tools = PairTools(job, source)
    try:
        with console.status("starting engines"):
            tools.start()
        began = time.monotonic()
        with progress:
            task = progress.add_task("rows", total=writer.count, completed=writer.rows)
            for number, prompts in enumerate(chunks[done:], done + 1):
                chunk = make_chunk(prompts, tools, recipe)
                store.add(number, chunk)
                writer.add(chunk)
                line = f"chunk {number} of at most {len(chunks)}"
                progress.update(task, completed=writer.rows, description=line)
                if not console.is_terminal:
                    console.print(f"{line}: {writer.rows} of {writer.count} rows", highlight=False)
                if writer.full:
                    break
        return time.monotonic() - began
    finally:
        with undisturbed():
            tools.close()


def _identity(job: PairsJob, source: Source) -> dict[str, Any]:
    """What decides the rows: config keys by name, and a digest of the prompts, which a data file may change without a key."""
    keys = {f"{section}.{key}": value for section, values in asdict(job).items() for key, value in values.items()}
    prompts = hashlib.blake2b(digest_size=8)
    for prompt in source.prompts:
        prompts.update(repr(prompt).encode())
    return {key: value for key, value in keys.items() if key not in SPEED} | {"digest of the prompts": prompts.hexdigest()}


T = TypeVar("T")
