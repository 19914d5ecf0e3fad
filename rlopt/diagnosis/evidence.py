"""What the doctor reads: a run's metrics, and the tokens of its record with the gap between learner and sampler."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlopt.config.sections import ModelConfig
from rlopt.core.errors import RloptError
from rlopt.data.rollout_log import NAME, Damaged, blocks
from rlopt.tracking.run_folder import config_of, steps_of

MOST_TOKENS = 2_000_000
"""About how many tokens of a record are read; of longer records a random choice of groups."""

Kind = Literal["sampled", "mixed", "offline", "rows"]
"""What a run learns from: samples, some recorded groups among them, these alone, or rows such as preference pairs."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Every token of a record that the policy sampled, all `[n]`.

    `lag` in learner steps, by the version that sampled it; `pure` where one version sampled the whole response (in the others a
    token may have read what older weights had made of those before it); `position` counts from the first response token,
    `since` from the first token of the stretch that the policy sampled without interruption.
    """

    step: np.ndarray
    lag: np.ndarray
    pure: np.ndarray
    position: np.ndarray
    since: np.ndarray
    behavior: np.ndarray
    gap: np.ndarray

    def where(self, rows: np.ndarray) -> "Tokens":
        return Tokens(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A run's metrics, step by step, and the tokens of its record.

    Attributes:
        tokens: None without a record, or where it never saw the log-probabilities of the policy that sampled.
        coarse: engine and learner may compute in bfloat16.
        top_p: of sampling.
        record: why there are no tokens, or not all of them; None: there are.
    """

    rows: Sequence[Mapping[str, float]]
    tokens: Tokens | None
    kind: Kind = "sampled"
    coarse: bool = False
    top_p: float = 1.0
    record: str | None = None

    @property
    def comparable_from(self) -> int:
        """The first step whose samples of lag 0 were sampled by the very weights that learned from them.

        Groups that another run recorded count as version 0, and so at step 1 as lag 0, whatever policy sampled them.
        """
        return 1 if self.kind == "sampled" else 2

    def column(self, name: str, last: float = 1.0) -> np.ndarray:
        """A metric over the `last` share of the steps, without steps that do not have it."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return np.array(values[int(len(values) * (1 - last)) :], float)


def read(run: Path) -> Evidence:
    """What the folder of a run has: its metrics, but a last line that was cut, and its record up to its damage.

    Raises:
        RloptError: a file holds something else.
    """
    rows = steps_of(run)
    if not rows:
        raise RloptError(f"{run}: its metrics.jsonl has no step; give the folder of a run")
    tokens, record = read_tokens(
        next((run / name for name in (NAME, NAME.removesuffix(".gz")) if (run / name).is_file()), None)
    )
    return Evidence(rows, tokens, *_circumstances(run), record)


def _circumstances(run: Path) -> tuple[Kind, bool, float]:
    """`kind`, `coarse` and `top_p` of `Evidence`, by the run's config; without one the benefit of the doubt."""
    if not (run / "config.yaml").exists():
        return "sampled", True, 1.0
    config = config_of(run)
    data, algo, model, cluster, rollout = (_section(config, name) for name in ("data", "algo", "model", "cluster", "rollout"))
    kind: Kind = "sampled"
    if algo and algo.get("group_relative") is None:
        kind = "rows"
    elif data.get("experience"):
        kind = "mixed" if data.get("experience_share", 1.0) < 1 else "offline"
    dtype = ModelConfig("", model.get("dtype", "auto")).resolved_dtype(cluster.get("gpus_per_learner", 0.0))
    return kind, dtype == "bfloat16", rollout.get("top_p", 1.0)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def read_tokens(record: Path | None) -> tuple[Tokens | None, str | None]:
    """The tokens of a record, and why there are none, or not all.

    Raises:
        RloptError: it holds no groups of a run.
    """
    if record is None:
        return None, f"no {NAME} here, which would show the gap of engine and learner by lag and position"
    columns: list[list[np.ndarray]] = [[] for _ in fields(Tokens)]
    chance, share = random.Random(0), MOST_TOKENS * 4 / max(1, record.stat().st_size)  # about four bytes a token
    why = None
    try:
        for block in blocks(record):
            for number, line in enumerate(block.lines):
                if share < 1 and chance.random() > share:
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise Damaged(block.offset(number), f"no JSON: {error.msg}") from None
                for sample in row.get("samples", []):
                    if sample["logprobs"] is not None:
                        _add(columns, row["step"], sample)
    except Damaged as damage:
        why = f"{record.name} is damaged from byte {damage.offset} on ({damage}): what stands before it was read"
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RloptError(f"{record.parent}: its {record.name} holds something else than groups ({why}); remove it") from error
    if not columns[0]:
        return None, why or f"{record.name} has no log-probabilities of the policy that sampled"
    return Tokens(*map(np.concatenate, columns)), why


def _add(columns: list[list[np.ndarray]], step: int, sample: Mapping[str, list[float]]) -> None:
    action_mask = np.array(sample["spoken"], bool)
    behavior, policy = np.array(sample["logprobs"]), np.array(sample["policy"])
    place = np.arange(len(action_mask))
    fresh = action_mask & ~np.concatenate([[False], action_mask[:-1]])
    since = place - np.maximum.accumulate(np.where(fresh, place, 0))
    lag = step - 1 - np.array(sample["versions"])
    mine = lag[action_mask]
    about = np.full(len(action_mask), step), lag, np.full(len(action_mask), mine.min() == mine.max())
    for column, values in zip(columns, (*about, place, since, behavior, policy - behavior), strict=True):
        column.append(values[action_mask])


def bins(tokens: Tokens, by: Literal["lag", "position"], count: int = 8) -> list[tuple[str, int, float, float]]:
    """(range, tokens, mean gap, mean |gap|) of tokens by lag or position, in at most `count` ranges of equal width."""
    values: np.ndarray = getattr(tokens, by)
    width = max(1, -(-(int(values.max()) + 1) // count))
    found = []
    for start in range(0, int(values.max()) + 1, width):
        gap = tokens.gap[(values >= start) & (values < start + width)]
        if len(gap):
            label = str(start) if width == 1 else f"{start} to {start + width - 1}"
            found.append((label, len(gap), float(gap.mean()), float(np.abs(gap).mean())))
    return found
