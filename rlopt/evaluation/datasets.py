"""The data sets of `data.eval`."""

from collections.abc import Mapping
from dataclasses import replace

from rlopt.config.sections import DataConfig
from rlopt.data.prompts import Loaded, load_prompts
from rlopt.data.wording import Wording
from rlopt.evaluation import evaluator


def load_evals(data: DataConfig, seed: int, words: Wording, room: int) -> dict[str, Loaded]:
    """The prompts of every data set of `data.eval`, by short name. `room` is the longest prompt in tokens."""
    sets = evaluator.names(data.eval or [])
    return {short: load_prompts(data, "data.eval", name, seed, words, room) for short, name in sets.items()}


def limited(evals: Mapping[str, Loaded], limit: int | None) -> dict[str, Loaded]:
    """The first `limit` prompts of each data set."""
    return {
        name: replace(loaded, prompts=loaded.prompts[:limit], numbers=loaded.numbers[:limit]) for name, loaded in evals.items()
    }
