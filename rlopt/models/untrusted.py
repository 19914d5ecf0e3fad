"""Model folders that others made: nothing in them is run, and what cannot be a model is refused before one is built of it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlopt.core.errors import RloptError

LARGEST = {
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31,
}
"""The most that a config may ask for; a model of one of these sizes would be ten times the largest there is."""

TEXT_MIB, HEADER_BYTES = 256, 10**8
"""Of a JSON file (tokenizers have large ones), and of the header of a safetensors file, which has this limit itself."""


def check_folder(named: str, folder: Path) -> None:
    """Refuse a model with code of its own, with pickles for weights, or with files that are not what they should be.

    Args:
        named: `model.path`, for the error.

    Raises:
        RloptError: by the file, and what is wrong with it.
    """
    try:
        for name in ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"):
            if (folder / name).is_file():
                _check_settings(name, _object(folder / name))
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            _check_index(folder, _object(index))
        weights = sorted(folder.glob("*.safetensors"))
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        if pickles and not weights:
            raise _Refused(f"{pickles[0]} is a pickle, which may run code when it is read; save the model as safetensors")
        if not weights:
            raise _Refused("the folder has no weights (*.safetensors); give a folder that transformers saved")
        for file in weights:
            _check_weights(file)
    except _Refused as why:
        raise RloptError(f"model.path={named}: {why}") from None


def refuse_lacking(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuse a folder whose files do not have every weight that its config asks for, in its size: transformers makes up a
    weight that it does not find.

    Args:
        found: transformers' loading info.

    Raises:
        RloptError: by the first such weight.
    """
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise RloptError(
            f"model.path={folder}: {name} has the size {tuple(there)}, and config.json asks for {tuple(wanted)}; "
            "give weights and config.json of one model"
        )
    if missing := sorted(found["missing_keys"]):
        raise RloptError(
            f"model.path={folder}: its files lack {len(missing)} weight(s), such as {missing[0]}, which transformers would "
            "make up; give the whole model, or a config.json that asks for no more"
        )


class _Refused(Exception):
    """What is wrong."""


def _object(file: Path) -> dict[str, Any]:
    if file.stat().st_size > TEXT_MIB * 2**20:
        raise _Refused(f"{file.name} has over {TEXT_MIB} MiB")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _Refused(f"{file.name} is not JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise _Refused(f"{file.name} is not a JSON object")
    return found


def _check_settings(name: str, settings: dict[str, Any]) -> None:
    if settings.get("auto_map"):
        raise _Refused(f"{name} has code of its own (auto_map), which rlopt does not run; use a model that transformers knows")
    if name != "config.json":
        return
    for key, value in _sizes(settings):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST[key]:
            raise _Refused(f"{name}: {key}={str(value)[:40]}; want 1 to {LARGEST[key]}")


def _sizes(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The sizes in a config, also in those of the parts of a model."""
    for key, value in settings.items():
        if key in LARGEST and value is not None:
            yield key, value
        elif isinstance(value, dict):
            yield from _sizes(value)


def _check_index(folder: Path, index: dict[str, Any]) -> None:
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise _Refused("model.safetensors.index.json has no weight_map")
    for name in {str(place) for place in places.values()}:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise _Refused(f"model.safetensors.index.json names {name[:60]}, which is no file of the folder")
        if not (folder / name).is_file():
            raise _Refused(f"{name} is missing, which model.safetensors.index.json names")


def _check_weights(file: Path) -> None:
    """Compare the header of a safetensors file with the file. Source: the format's description."""
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(HEADER_BYTES, size - 8):
            raise _Refused(f"{file.name} is not a safetensors file, or was cut short")
        try:
            header = json.loads(content.read(length))
        except (ValueError, RecursionError):
            raise _Refused(f"{file.name} has no header that can be read") from None
    if not isinstance(header, dict):
        raise _Refused(f"{file.name} has no header that can be read")
    for name, about in header.items():
        if name == "__metadata__":
            continue
        ends: Any = about.get("data_offsets") if isinstance(about, dict) else None
        sound = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends)
        if not sound or not 0 <= ends[0] <= ends[1] <= size - 8 - length:
            raise _Refused(f"{file.name}: {name[:60]} is not within the file")
