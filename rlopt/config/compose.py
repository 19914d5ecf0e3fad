"""From Hydra's composed mapping to the typed `Config`, and from errors of libraries to one line."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pydantic
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

import rlopt
from rlopt.config.passthrough import OURS, close
from rlopt.config.schema import Config
from rlopt.config.sections import GroupRelativeConfig
from rlopt.config.synonyms import meant
from rlopt.core.errors import RloptError, first_line
from rlopt.core.user_code import current_name

T = TypeVar("T")


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package once installed, beside it in a checkout."""
    package = Path(rlopt.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def default_section(name: str) -> dict[str, Any]:
    """A section of `config.yaml`."""
    found: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"))
    section: dict[str, Any] = found[name]
    return section


def algorithms() -> list[str]:
    """The names that `+algo=` takes."""
    return sorted(path.stem for path in (conf_dir() / "algo").glob("[!_]*.yaml"))


def typed(composed: DictConfig) -> Config:
    """The typed config; every wrong key or value is refused with its full name."""
    if "algo" not in composed:
        raise RloptError(f"algo: not given; append one with +algo=NAME, where NAME is one of {', '.join(algorithms())}")
    raw: Any = normalized(OmegaConf.to_container(composed, resolve=True))
    raw["algo"] = _sorted_out(raw["algo"])
    config = read(Config, raw, "")
    _refuse_ignored(config, raw)
    return config


def typed_job(kind: type[T], composed: DictConfig) -> T:
    """The typed config of a command that makes no run: sections that are null in its YAML are left out."""
    raw: Any = OmegaConf.to_container(composed, resolve=True)
    raw["run"] = {key: value for key, value in raw["run"].items() if value is not None}
    return read(kind, {name: section for name, section in raw.items() if section is not None}, "")


ROWS = ["reward.*", "env.*", "rollout.*", "sync.*", "replay.*", "run.record", "data.max_prompt_tokens"]
ROWS += ["eval.*", "trainer.best", "trainer.log_samples", "cluster.gpus_per_engine"]
ROWS += [f"data.{key}" for key in ("answer_format", "experience", "experience_share")]
"""Keys without effect in a run on recorded rows; a star is every key of a section."""
OFFLINE = ["reward.*", "env.*", "sync.*", "cluster.gpus_per_engine"]
OFFLINE += [f"data.{key}" for key in ("train", "size", "subset", "split", "prompt_key", "answer_key", "answer_format")]
OFFLINE += ["data.max_prompt_tokens"]
OFFLINE += [f"rollout.{key}" for key in ("engines", "tensor_parallel", "max_num_seqs", "kv_cache_gib", "gpu_memory_share")]
"""Keys without effect in a run on recorded groups alone; the samplers' temperature and length limit still matter."""
EVAL = ["data.eval", "data.eval_split", "trainer.eval_every", "trainer.best", "eval.*"]
"""Keys without effect in a run without evaluation."""


def _refuse_ignored(config: Config, raw: dict[str, Any]) -> None:
    """Refuse keys that would have no effect."""
    name = f"+algo={config.algo.name}"
    if not config.algo.group_relative:
        vain, why = ROWS, f"{name}, it has no samplers"
    elif not config.samples:
        vain, why = OFFLINE + EVAL, f"data.experience={config.data.experience} alone, it has no samplers"
    else:
        vain, why = [] if config.data.eval else EVAL, f"{name} without data.eval"
    default: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"))
    for name in vain:
        section, _, key = name.partition(".")
        for each in raw[section] if key == "*" else [key]:
            if raw[section][each] != default[section][each]:
                setting = f"{section}.{each}={raw[section][each]}"
                raise RloptError(f"{setting}: means nothing to {why}; drop it")


EARLIER_KEYS = {"credit": "advantages", "anchor": "old_logprobs"}
"""Keys of `algo` by their names of the release before, which work for one more."""


def current_algo(algo: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `algo`, or of its group-relative section, by their present names; an earlier name counts where both are."""
    earlier = {now: algo[before] for before, now in EARLIER_KEYS.items() if before in algo}
    return {key: value for key, value in algo.items() if key not in EARLIER_KEYS} | earlier


def _sorted_out(algo: dict[str, Any]) -> dict[str, Any]:
    """The flat keys of an algorithm's YAML, sorted into the sections of the schema; the rest are the objective's fields."""
    algo = current_algo(algo)
    shared = {field.name for field in fields(GroupRelativeConfig)} & algo.keys()
    named = {"name", "objective"} & algo.keys()
    return {
        **{key: algo[key] for key in named},
        "group_relative": {key: algo[key] for key in shared} or None,
        "options": {key: algo[key] for key in algo if key not in shared | named},
    }


def read(kind: type[T], raw: Any, prefix: str) -> T:
    """`raw` as the dataclass `kind`, strictly: no unknown key, no missing one, no silent conversion but of `~` in paths."""
    raw = normalized(raw)
    if "__pydantic_config__" in vars(kind):
        checked: Any = kind
    else:  # a plain dataclass, such as an objective: validate with a strict copy of it
        strict = pydantic.ConfigDict(extra="forbid", strict=True)
        checked = pydantic.dataclasses.dataclass(kind, config=strict, frozen=True)
    try:
        value = pydantic.TypeAdapter(checked).validate_json(json.dumps(raw), strict=True)
        return value if checked is kind else kind(**raw)
    except pydantic.ValidationError as invalid:
        first = invalid.errors()[0]
        parts = [str(part) for part in first["loc"] if not _BRANCH.match(str(part))]
        key = prefix + ".".join(parts).replace("options.", "").replace("group_relative.", "")
        if bound := _broken_bound(kind, raw, first["loc"]) if first["type"] in BOUNDS else None:
            raise RloptError(f"{prefix}{bound}".replace("group_relative.", "")) from None
        raise RloptError(_explain(key, first)) from None


_BRANCH = re.compile(r"(?:constrained-)?(?:str|int|float|bool)$|(?:list|dict|literal|function-[a-z]+)\[")
"""How pydantic names the types of a key that takes several, behind the key."""

BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "value_error"}
BOUNDS |= {"too_short", "too_long", "string_pattern_mismatch"}
"""pydantic's error types for a value of the right type that is out of its `Field`'s bounds."""


def _broken_bound(kind: Any, raw: Any, place: tuple[str | int, ...]) -> str | None:
    """`key=value: description` of the field whose value is out of bounds; None where the field describes none."""
    for depth, name in enumerate(place, 1):
        hint = get_type_hints(kind, include_extras=True)[str(name)]
        raw = raw[name]
        for member in (hint, *get_args(hint)):
            for told in getattr(member, "__metadata__", ()):
                if getattr(told, "description", None):
                    return f"{'.'.join(map(str, place[:depth]))}={raw}: {told.description}"
        kind = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if kind is None:
            return None
    return None


def normalized(raw: Any) -> Any:
    """`raw` with the user's home for a leading `~/`, and with the current names of our own functions."""
    if isinstance(raw, dict):
        return {key: normalized(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [normalized(value) for value in raw]
    if not isinstance(raw, str):
        return raw
    return current_name(os.path.expanduser(raw) if raw == "~" or raw.startswith("~/") else raw)


def _explain(key: str, error: Any) -> str:
    message = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "unexpected_keyword_argument":
        return f"{key}={error['input']}: no such key{_suggest(key, 'config')}; --cfg job prints those that there are"
    if error["type"] == "string_type" and isinstance(error["input"], dict | list):
        return f"{key}={error['input']}: {message}; a text with brackets or commas needs quotes of its own, '{key}=\"...\"'"
    if error["type"] == "string_too_short":
        return f"{key}=: is empty; give it a value, or leave it out"
    if error["type"] == "list_type":
        return f"{key}={error['input']}: must be a list, e.g. [a,b]"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; give it a value"
    return f"{key}={error['input']}: {message}"


def translate(error: Exception, primary: str = "config") -> RloptError:
    """The error for what Hydra or OmegaConf refused of `conf/<primary>.yaml`: one line with what to do."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).partition("/")
        there = sorted(option for option in error.options or [] if not option.startswith("_"))
        what = {"algo": "algorithm", "data": "data set", "experiment": "recipe"}.get(group, "file")
        return RloptError(f"{group}={name}: no such {what}; one of {', '.join(there)}")
    key = _named_in_text(error)
    if not key:
        return RloptError(f"{first_line(error)} (see --help for the syntax of overrides)")
    if key.split("=")[0] == "algo":
        return RloptError(f"{key}: append it with a plus, +algo=NAME, where NAME is one of {', '.join(algorithms())}")
    for handed_over in OURS:
        if key.startswith(f"{handed_over}."):
            return RloptError(f"{key}: append it with a plus, +{key}=VALUE")
    if key.startswith("algo."):
        meaning = meant(key)
        if meaning and meaning != key:
            return RloptError(f"{key}: no such key, did you mean {meaning}; the algorithm's keys are in conf/algo/")
        return RloptError(f"{key}: the chosen algorithm has no such key; its keys are in conf/algo/, see --cfg job")
    return RloptError(f"{key}: no such key{_suggest(key, primary)}; see conf/{primary}.yaml, or --cfg job")


def _named_in_text(error: Exception) -> str | None:
    """The full key that could not be set; Hydra has it only in the text of its error."""
    found = re.search(r"Could not (?:override|append).*?'([^']+)'", str(error))
    return found[1].removeprefix("+") if found else None


def _suggest(key: str, primary: str) -> str:
    """Which existing key an unknown one may mean: its name in another framework, its section, or its spelling."""
    layers = [OmegaConf.load(conf_dir() / f"{name}.yaml") for name in dict.fromkeys(("config", primary))]
    known: Any = OmegaConf.merge(*layers)  # a command that has no use for a section sets it to null
    sections = {section: known[section] for section in known if known[section] is not None}
    names = [f"{section}.{name}" for section, keys in sections.items() for name in keys]
    names += [f"algo.{field.name}" for field in fields(GroupRelativeConfig)]
    last = key.rpartition(".")[2]
    elsewhere = [name for name in names if name.rpartition(".")[2] == last and name != key]
    if len(elsewhere) == 1:
        return f", did you mean {elsewhere[0]}"
    meaning = meant(key)
    if meaning and meaning != key and (meaning.partition(".")[0] == "algo" or meaning.partition(".")[0] in sections):
        return f", did you mean {meaning}"
    if elsewhere:
        return f", did you mean {' or '.join(elsewhere)}"
    return close(key, names)
