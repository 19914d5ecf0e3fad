"""The folder of a run as other commands read it: its config, and what it measured."""

import json
from pathlib import Path
from typing import Any

import yaml

from rlopt.core.errors import RloptError, first_line


def config_of(run: Path) -> dict[str, Any]:
    """The config of a run, as `config.yaml` has it.

    Raises:
        RloptError: there is none, or it cannot be read as one.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RloptError(f"{run}: its config.yaml cannot be read ({first_line(error)}); give the folder of a run") from error
    if not isinstance(config, dict):
        raise RloptError(f"{run}: its config.yaml is not the config of a run; give the folder of one")
    return config


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of every step, as `metrics.jsonl` has them; a last line that was cut short is left out.

    Raises:
        RloptError: there are none, or they cannot be read as such.
    """
    try:
        whole, _, _ = (run / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")
        rows = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as error:
        raise RloptError(f"{run}: its metrics.jsonl cannot be read ({first_line(error)}); give the folder of a run") from error
    if not all(isinstance(row, dict) and "step" in row for row in rows):
        raise RloptError(f"{run}: its metrics.jsonl does not hold the steps of a run; give the folder of one")
    return rows


def read_column(run: Path, name: str) -> list[float]:
    """One metric of a run, step by step; NaN where a step did not log it. Raises what `steps_of` does."""
    return [float("nan") if row.get(name) is None else float(row[name]) for row in steps_of(run)]
