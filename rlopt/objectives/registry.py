"""Objective classes by name."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from rlopt.config.compose import _sorted_out, algorithms, conf_dir
from rlopt.core import user_code
from rlopt.core.errors import RloptError
from rlopt.objectives.core import Traits


def load_class(name: str) -> type[Any]:
    """The objective class that `module:Class` names, checked for what an objective must have."""
    kind: Any = user_code.load("algo.objective", name, "Class")
    known: bool = is_dataclass(kind)
    if not known:
        raise RloptError(f"algo.objective={name}: is not a dataclass; an objective is as rlopt.objectives.core.Objective says")
    there = {*dir(kind), *(field.name for field in fields(kind))}
    missing = [member for member in ("traits", "average", "advantages", "loss") if member not in there]
    if missing:
        what = f"lacks {', '.join(missing)}"
        raise RloptError(f"algo.objective={name}: {what}; an objective is as rlopt.objectives.core.Objective says")
    if not isinstance(getattr(kind, "traits", None), Traits):
        raise RloptError(f"algo.objective={name}: traits must be a class variable that holds a rlopt.objectives.core.Traits")
    useless = [member for member in ("advantages", "loss") if not callable(getattr(kind, member, None))]
    if useless:
        raise RloptError(f"algo.objective={name}: {', '.join(useless)} must be a method")
    return kind  # type: ignore[no-any-return]


def objective_of(algorithm: str) -> tuple[str, dict[str, Any]]:
    """The class (`module:Class`) and its fields as the YAML of `algorithm` has them."""
    file = conf_dir() / "algo" / f"{algorithm}.yaml"
    if not file.is_file():
        raise RloptError(f"{algorithm}: no such algorithm; one of {', '.join(algorithms())}")
    raw: Any = OmegaConf.to_container(OmegaConf.load(file))
    algo = _sorted_out({key: value for key, value in raw.items() if key != "defaults"})
    return algo["objective"], algo["options"]
