"""What a run learns from and evaluates on, loaded: prompts to sample from, recorded groups, or recorded rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlopt.config.schema import Config
from rlopt.core.errors import RloptError, need
from rlopt.core.samples import Example, Prompt
from rlopt.data.offline_rollouts import Experience, Needs, load_experience
from rlopt.data.preferences import load_examples
from rlopt.data.prompts import Loaded, drop_eval_overlap, load_prompts
from rlopt.data.unusable import normalize_text
from rlopt.data.wording import Wording
from rlopt.evaluation.datasets import limited, load_evals
from rlopt.objectives.core import LossTerms, Objective
from rlopt.run.objective import why_logprobs


@dataclass(frozen=True)
class Recordings:
    """Recorded rows: to learn from, held out, left out (with the reason), and notes for people."""

    train: list[Example]
    held_out: list[Example]
    dropped: Mapping[str, Mapping[str, list[int]]]
    notes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class RunData:
    """All data of a run.

    Attributes:
        train: to sample from; None where nothing is sampled.
        evals: to evaluate on, by short name.
        recordings: rows to learn from, in the place of groups.
        experience: recorded groups to learn from, alone or beside sampled ones.
        longest: sequence that may come, in tokens.
    """

    train: Loaded | None
    evals: Mapping[str, Loaded]
    recordings: Recordings | None
    experience: Experience | None
    longest: int

    @property
    def prompts(self) -> list[Prompt]:
        """To sample from; none where nothing is sampled."""
        return self.train.prompts if self.train else []

    @property
    def left_out(self) -> dict[str, Mapping[str, list[int]]]:
        """By data set: reason to the numbers of the rows whose prompts are not among those sampled from or evaluated on."""
        return {name: loaded.left_out for name, loaded in self._sets().items() if loaded.left_out}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """By data set: notes about its rows, for people."""
        recorded = dict(self.recordings.notes) if self.recordings else {}
        told = {name: loaded.notes for name, loaded in self._sets().items()} | recorded
        return {name: notes for name, notes in told.items() if notes}

    @property
    def unanswered(self) -> dict[str, Prompt]:
        """A prompt of each data set whose rows have no answers."""
        return {name: loaded.prompts[0] for name, loaded in self._sets().items() if not loaded.answered}

    def _sets(self) -> dict[str, Loaded]:
        train = {"data.train": self.train} if self.train else {}
        return train | {f"data.eval ({name})": loaded for name, loaded in self.evals.items()}


def load_data(
    config: Config, objective: Objective, terms: LossTerms, words: Wording, about: Mapping[str, object], context: int
) -> RunData:
    """Everything that the keys of `data` name.

    Args:
        about: the first line that a record of this run would have.
        context: tokens that the model has room for.

    Raises:
        RloptError: something cannot be read or used, or nothing is left.
    """
    train, evals, eval_prompts, longest = None, dict[str, Loaded](), list[Prompt](), 0
    if config.samples:
        room = context - config.rollout.max_new_tokens
        everything = load_prompts(config.data, "data.train", config.data.train, config.run.seed, words, room)
        evals = load_evals(config.data, config.run.seed, words, room)
        eval_prompts = [prompt for loaded in evals.values() for prompt in loaded.prompts]
        train, evals = drop_eval_overlap(everything, eval_prompts), limited(evals, config.eval.limit)
        # What an environment opens its episodes with is not known before.
        opened = config.data.max_prompt_tokens if config.env.fn and config.data.max_prompt_tokens else 0
        longest = max(opened, *(len(p.token_ids) for p in train.prompts + eval_prompts)) + config.rollout.max_new_tokens
    if not config.algo.group_relative:
        recordings = _load_recordings(config, objective, words, context)
        rows = recordings.train + recordings.held_out
        longest = max(len(e.prompt.token_ids) + len(a) for e in rows for a in e.answers)
        return RunData(None, {}, recordings, None, longest)
    experience = None
    if config.data.experience:
        held_out = frozenset(normalize_text(prompt.text) for prompt in eval_prompts)
        limit, why = min(context, config.learner.tokens_at_once), why_logprobs(config, objective, terms)
        needs = Needs(limit, objective.traits.equal_rewards_no_credit, why, held_out)
        experience = load_experience(config.data.experience, words, about, needs, config.data.invalid_rows == "drop")
        _check_wording(config, experience)
        longest = max(longest, experience.longest)
    return RunData(train, evals, None, experience, longest)


def _check_wording(config: Config, experience: Experience) -> None:
    """Refuse keys that word prompts where all prompts are token ids."""
    data, there = config.data, config.samples or experience.has_texts
    for key, value, default in (("template", data.template, None), ("chat", data.chat, "auto"), ("system", data.system, None)):
        why = f"means nothing to data.experience={data.experience}, whose prompts are token ids; drop it"
        need(there or value == default, f"data.{key}", value, why)


def _load_recordings(config: Config, objective: Objective, words: Wording, context: int) -> Recordings:
    rows = objective.traits.rows
    if rows == "groups":
        raise RloptError(f"algo={config.algo.name}: learns from groups, which are sampled and not recorded")
    budget = config.learner.tokens_at_once // (2 if objective.traits.unit == "group" else 1)
    limit, data = min(context, budget), config.data
    train = load_examples("data.train", data, rows, words, limit, config.run.seed)
    dropped, held_out, notes = {"data.train": train.dropped}, list[Example](), {"data.train": train.notes}
    if data.eval:
        loaded = load_examples("data.eval", data, rows, words, limit, config.run.seed)
        held_out, dropped["data.eval"], notes["data.eval"] = loaded.examples, loaded.dropped, loaded.notes
        there = {normalize_text(example.prompt.text) for example in held_out}
        leaked = sum(normalize_text(example.prompt.text) in there for example in train.examples)
        notes["data.train"] += (f"{leaked} prompts are in data.eval too",) * bool(leaked)
    return Recordings(train.examples, held_out, dropped, notes)
