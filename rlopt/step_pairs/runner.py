"""Makes step pairs with real engines: starts them, goes through the data chunk by chunk, keeps what is done, writes the files.

Beside `OUT` a folder `OUT.partial/` holds what is done: `config.json`, which decides the rows, and one file a chunk, each
written aside and renamed. A killed command goes on after the last of them; the rows do not depend on where it was cut,
because every sample has its own seed and duplicates are found anew from the first chunk on. `OUT` itself appears last.
"""

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlopt.cluster.actors import Cluster, Workers
from rlopt.config.commands import PairsJob
from rlopt.config.compose import normalised
from rlopt.core.atomic_write import write_whole
from rlopt.core.errors import Fault, RloptError
from rlopt.core.requests import Answer, Continuation
from rlopt.core.samples import Prompt
from rlopt.core.sandbox import Pool
from rlopt.core.signals import undisturbed
from rlopt.data.prompts import load_prompts
from rlopt.data.wording import wording
from rlopt.models.loading import context_length, find_model, load_tokenizer
from rlopt.rewards.pool import Scored
from rlopt.rollout.vllm_engine import EngineConfig
from rlopt.rollout.worker import spawner
from rlopt.step_pairs.mining import MEANING, Chunk, PairWriter, Recipe, Row, check_place, check_steps, make_chunk
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
    """What a finished command can say of itself.

    Attributes:
        files: rows to train on, rows to evaluate on, counts.
        table: every count with its meaning.
        rows: in both files together.
        made: rows that this process made; the others stood already.
        seconds: from its first request to its last row.
    """

    files: tuple[Path, Path, Path]
    table: list[tuple[int, str]]
    rows: int
    made: int
    seconds: float


@dataclass(frozen=True)
class Source:
    """What answers are sampled from: everything that can be refused has been looked at."""

    folder: Path
    tokenizer: Any
    prompts: list[Prompt]
    longest: int


@dataclass(frozen=True)
class SplitCall:
    completion: str


@dataclass(frozen=True)
class LocateCall:
    prompt: str
    steps: list[str]
    answer: str


def make_pairs(job: PairsJob, console: Console) -> Outcome:
    """The whole life of the command.

    Raises:
        RloptError: the config cannot be run, or a worker or a user's function failed; nothing is left running.
    """
    pairs, kept = job.pairs, ChunkStore(Path(job.pairs.out))
    source = find_source(job, console)
    kept.claim(_identity(job, source))
    chunks = [source.prompts[i : i + pairs.chunk] for i in range(0, len(source.prompts), pairs.chunk)]
    ledger, done = PairWriter(pairs.count, pairs.eval_share), 0
    for chunk in kept.chunks():
        ledger.add(chunk)
        done += 1
    if done:
        console.print(f"going on after chunk {done} with {ledger.rows} rows", highlight=False)
    stood, seconds = ledger.rows, 0.0
    if not ledger.full and done < len(chunks):
        seconds = _make_chunks(job, source, chunks, done, ledger, kept, console)
    counts = {what: ledger.counts[what] for what in MEANING}
    files = kept.finish(ledger.train, ledger.eval, counts)
    return Outcome(
        files, [(counts[what], meaning) for what, meaning in MEANING.items()], ledger.rows, ledger.rows - stood, seconds
    )


def find_source(job: PairsJob, console: Console) -> Source:
    """The model and the prompts, in a seeded order."""
    folder = find_model(job.model.path, TrainingBar(console, f"training {job.model.path} (once on this machine)"))
    tokenizer = load_tokenizer(folder)
    room = context_length(folder) - job.rollout.max_new_tokens
    prompts = load_prompts(job.data, "data.train", job.data.train, job.run.seed, wording(job.data, tokenizer), room).prompts
    random.Random(f"{job.run.seed}/pairs").shuffle(prompts)
    return Source(folder, tokenizer, prompts, max(len(prompt.token_ids) for prompt in prompts) + job.rollout.max_new_tokens)


def _make_chunks(
    job: PairsJob,
    source: Source,
    chunks: list[list[Prompt]],
    done: int,
    ledger: PairWriter,
    kept: "ChunkStore",
    console: Console,
) -> float:
    """Make the chunks after the first `done` until the ledger is full; the seconds that this took."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    recipe = Recipe(job.pairs.attempts, job.pairs.continuations, job.pairs.right, job.run.seed)
    workshop = PairTools(job, source)
    try:
        with console.status("starting engines"):
            workshop.start()
        began = time.monotonic()
        with progress:
            task = progress.add_task("rows", total=ledger.count, completed=ledger.rows)
            for number, prompts in enumerate(chunks[done:], done + 1):
                chunk = make_chunk(prompts, workshop, recipe)
                kept.add(number, chunk)
                ledger.add(chunk)
                line = f"chunk {number} of at most {len(chunks)}"
                progress.update(task, completed=ledger.rows, description=line)
                if not console.is_terminal:
                    console.print(f"{line}: {ledger.rows} of {ledger.count} rows", highlight=False)
                if ledger.full:
                    break
        return time.monotonic() - began
    finally:
        with undisturbed():
            workshop.close()


class PairTools:
    """`steps.Tools` with real engines, the reward function beside them, and the user's functions in processes here."""

    def __init__(self, job: PairsJob, source: Source) -> None:
        self._job, self._source = job, source
        self._open: list[Pool | Workers] = []
        self._cluster = Cluster(job.cluster)

    def start(self) -> None:
        """Start everything; returns when the engines answer."""
        job = self._job
        engine = EngineConfig(
            folder=self._source.folder,
            dtype=job.model.resolved_dtype(job.cluster.gpus_per_engine),
            device="cuda" if job.cluster.gpus_per_engine else "cpu",
            backend="nccl" if job.cluster.gpus_per_engine else "shm",  # named because vLLM wants one; no weights are sent
            max_model_len=self._source.longest,
            threads=job.cluster.cpu_threads,
            seed=job.run.seed,
            in_flight="wait",
            learns=False,
        )
        spawn = spawner(self._cluster, job.cluster, engine, job.rollout, job.reward, job.pairs.attempts)
        engines = spawn("engine", job.rollout.engines)
        self._open.append(engines)
        self._sampler = Sampler(engines)
        starting = engines.start("start", deadline_s=job.cluster.start_deadline_s)
        self._split = self._pool("pairs.split", job.pairs.split)
        self._locate = self._pool("pairs.locate", job.pairs.locate)
        starting.result("starting up")

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        return self._sampler.complete(openings, count)

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[float | None]:
        return [one.reward if isinstance(one, Scored) else None for one in self._sampler.grade(answers)]

    def split(self, texts: list[str]) -> list[list[str]]:
        found = self._split.call_each([SplitCall(text) for text in texts])
        return [check_steps(self._job.pairs.split, text, steps) for text, steps in zip(texts, found, strict=True)]

    def locate(self, answers: list[tuple[Prompt, list[str]]]) -> list[int | None]:
        found = self._locate.call_each([LocateCall(prompt.text, steps, prompt.answer) for prompt, steps in answers])
        return [check_place(self._job.pairs.locate, steps, at) for (_, steps), at in zip(answers, found, strict=True)]

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._source.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def close(self) -> None:
        for one in self._open:
            one.close()
        self._cluster.close()

    def _pool(self, key: str, name: str) -> Pool:
        pool = Pool(key, name, self._job.reward.workers, self._job.reward.timeout_s)
        self._open.append(pool)
        return pool


class ChunkStore:
    """The files beside `out`."""

    def __init__(self, out: Path) -> None:
        """Raises RloptError when the rows are finished."""
        self._folder = out.with_name(f"{out.name}.partial")
        self._files = (out, out.with_name(f"{out.stem}.eval.jsonl"), out.with_name(f"{out.name}.counts.json"))
        there = [path for path in self._files if path.exists()]
        if there and not self._folder.exists():
            raise RloptError(f"pairs.out={out}: {there[0]} is finished already; choose another pairs.out, or remove it")

    def claim(self, identity: dict[str, Any]) -> None:
        """Begin the folder of what is done, or go on with it.

        Raises:
            RloptError: it was made with another config.
        """
        config = self._folder / "config.json"
        theirs = normalised(json.loads(config.read_text())) if config.exists() else identity
        differs = [f"{key}={identity[key]} (there: {theirs.get(key)})" for key in identity if identity[key] != theirs.get(key)]
        if differs:
            raise RloptError(
                f"pairs.out={self._files[0]}: {self._folder} holds rows of another config, {'; '.join(differs[:3])}; "
                "choose another pairs.out, or its values, or remove that folder"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(config, json.dumps(identity, indent=2))

    def chunks(self) -> Iterable[Chunk]:
        """Those that are done, from the first on."""
        number = 1
        while (path := self._chunk(number)).exists():
            chunk = json.loads(path.read_text())
            yield Chunk(chunk["rows"], Counter(chunk["counts"]))
            number += 1

    def add(self, number: int, chunk: Chunk) -> None:
        write_whole(self._chunk(number), json.dumps(vars(chunk)))

    def finish(self, train: list[Row], evaluation: list[Row], counts: dict[Any, int]) -> tuple[Path, Path, Path]:
        """Write the files of the rows and counts, `out` last: it is the commit."""
        out, eval_file, counts_file = self._files
        write_whole(counts_file, json.dumps(counts, indent=2) + "\n")
        for path, rows in ((eval_file, evaluation), (out, train)):
            write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        gone = self._folder.with_name(f".{self._folder.name}.done")
        shutil.rmtree(gone, ignore_errors=True)
        self._folder.rename(gone)  # at once: half a folder would look like one to go on with
        shutil.rmtree(gone)
        return self._files

    def _chunk(self, number: int) -> Path:
        return self._folder / f"chunk_{number:06}.json"


def _identity(job: PairsJob, source: Source) -> dict[str, Any]:
    """What decides the rows: config keys by name, and a digest of the prompts, which a data file may change without a key."""
    keys = {f"{section}.{key}": value for section, values in asdict(job).items() for key, value in values.items()}
    prompts = hashlib.blake2b(digest_size=8)
    for prompt in source.prompts:
        prompts.update(repr(prompt).encode())
    return {key: value for key, value in keys.items() if key not in SPEED} | {"digest of the prompts": prompts.hexdigest()}


T = TypeVar("T")


class Sampler:
    """All engines, as a command that samples without learning sees them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def complete(self, openings: list[Continuation], count: int) -> list[list[Answer]]:
        """`count` answers that go on from each opening; the same ones whichever engine speaks them."""
        shares = _deal(openings, len(self._workers))
        return _gather(self._workers.start("complete", *([share, count] for share in shares)).result("sampling answers"))

    def grade(self, answers: list[tuple[Prompt, str]]) -> list[Scored | Fault | None]:
        """What the reward function, beside the engines, says of each text; None where it leaves an answer out."""
        shares = _deal(answers, len(self._workers))
        return _gather(self._workers.start("grade", *([share] for share in shares)).result("grading answers"))


def _deal(items: list[T], count: int) -> list[list[T]]:
    """The shares of `count` workers, dealt in turn."""
    return [items[i::count] for i in range(count)]


def _gather(shares: list[list[T]]) -> list[T]:
    """What `_deal` dealt, in its first order."""
    width = len(shares)
    return [shares[i % width][i // width] for i in range(sum(map(len, shares)))]
