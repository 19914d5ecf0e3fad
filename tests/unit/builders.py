"""Small things that tests are made of."""

from dataclasses import replace
from typing import Any

import hydra
import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from rlopt.config.cli import refusal
from rlopt.config.compose import conf_dir, default_section, read, typed
from rlopt.config.schema import Config
from rlopt.config.sections import DataConfig
from rlopt.core.batches import Batch
from rlopt.core.samples import Group, Prompt, Sample
from rlopt.core.table import Update, token_weights
from rlopt.data.collate import tabulate
from rlopt.objectives.core import LossTerms, no_loss_terms
from rlopt.objectives.credit import compute_advantages, sequence_weights
from rlopt.objectives.rec import OneSide

OBJECTIVE = OneSide(clip_low=0.2, clip_high=0.2, importance_sampling=False, std="none")


def terms(**changed: object) -> LossTerms:
    """Nothing added, nothing corrected, at most 4 response tokens; but for what is `changed`."""
    return replace(no_loss_terms(4), **{"off_policy": True, **changed})  # type: ignore[arg-type]


def update_of(groups: list[Group], step: int = 1) -> Update:
    table = tabulate(groups, step)
    (update,) = compute_advantages(table, None, torch.zeros(table.shape), OBJECTIVE, terms())
    return update


def batch_of(groups: list[Group], step: int = 1) -> Batch:
    return update_of(groups, step).batch()


def loss_weights(mask: Tensor, average: Any, group: Tensor, limit: int) -> Tensor:
    """The average as a matrix `[B, T]`, for the `mask` of a whole update."""
    return token_weights(mask, sequence_weights(mask.sum(1), average, group, limit), average == "pair_mean")


def composed(name: str, *overrides: str) -> DictConfig:
    """What Hydra makes of `conf/NAME.yaml` and these overrides."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def compose(*overrides: str) -> Config:
    """The config of a run with these overrides; Hydra's errors are those that `rlopt.train` shows."""
    try:
        return typed(composed("config", *overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise refusal(error) from error


def data_config(**changed: Any) -> DataConfig:
    """As `conf/config.yaml` has it, but for what is `changed`."""
    return read(DataConfig, {**default_section("data"), **changed}, "data.")


def prompt(name: str = "p", length: int = 3) -> Prompt:
    return Prompt(name, tuple(range(5, 5 + length)), "1+1=", "2", "test")


def sample(length: int = 2, reward: float = 1.0, version: int = 0, finish: str = "stop", prompt_id: str = "p") -> Sample:
    return Sample(
        prompt_id=prompt_id,
        token_ids=np.arange(20, 20 + length, dtype=np.int32),
        action_mask=np.ones(length, bool),
        logprobs=np.full(length, -0.5, np.float32),
        versions=np.full(length, version, np.int32),
        text="Answer: 2",
        finish=finish,  # type: ignore[arg-type]
        reward=reward,
        parts={},
    )


def group(name: str = "p", rewards: tuple[float, ...] = (1.0, 0.0), version: int = 0) -> Group:
    return Group(prompt(name), tuple(sample(2 + i, reward, version, prompt_id=name) for i, reward in enumerate(rewards)))
