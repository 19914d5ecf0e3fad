"""From groups and examples to the table of a step."""

import numpy as np
import torch

from rlopt.core.errors import RloptError
from rlopt.core.samples import Example, Group, Prompt
from rlopt.core.table import SequenceTable


def tabulate(groups: list[Group], step: int) -> SequenceTable:
    """All samples of all groups of learner step `step` (1-based), in order.

    Raises:
        RloptError: no sample is left, or one is newer than the learner.
    """
    left = [group for group in groups if group.samples]
    if not left:
        why = next((fault.why for group in groups for fault in group.faults), "the reward returned None for all of them")
        raise RloptError(f"step {step}: no sample is left to learn from; {why}")
    prompts = [_ids(group.prompt) for group in left]
    rows = [(number, sample) for number, group in enumerate(left) for sample in group.samples]
    lag = torch.tensor([step - 1 - sample.version for _, sample in rows])
    if lag.min() < 0:
        raise RloptError(f"step {step}: a sample of version {step - 1 - int(lag.min())} is newer than the learner")
    return SequenceTable(
        prompts=[prompts[number] for number, _ in rows],
        responses=[sample.token_ids for _, sample in rows],
        action_masks=[sample.action_mask for _, sample in rows],
        rollout_logprobs=[sample.logprobs for _, sample in rows],
        rewards=torch.tensor([sample.reward for _, sample in rows], dtype=torch.float64),
        group=torch.tensor([number for number, _ in rows]),
        truncated=torch.tensor([sample.finish == "length" for _, sample in rows]),
        lag=lag,
        step=step,
        turns=tuple(sample.turns for _, sample in rows),
    )


def tabulate_examples(examples: list[Example]) -> SequenceTable:
    """The answers of all examples, in order: no rollout log-probabilities, reward 1 for the first of a row, else 0."""
    prompts = [_ids(example.prompt) for example in examples]
    rows = [(number, place, answer) for number, e in enumerate(examples) for place, answer in enumerate(e.answers)]
    return SequenceTable(
        prompts=[prompts[number] for number, _, _ in rows],
        responses=[np.array(answer, np.int32) for _, _, answer in rows],
        action_masks=[np.ones(len(answer), np.bool_) for _, _, answer in rows],
        rollout_logprobs=[np.zeros(len(answer), np.float32) for _, _, answer in rows],
        rewards=torch.tensor([float(place == 0) for _, place, _ in rows], dtype=torch.float64),
        group=torch.tensor([number for number, _, _ in rows]),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        lag=torch.zeros(len(rows), dtype=torch.int64),
        step=0,
    )


def _ids(prompt: Prompt) -> np.ndarray:
    return np.array(prompt.token_ids, np.int32)
