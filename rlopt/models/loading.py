"""Finding and reading a model: its folder, tokenizer, shape and context length."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from filelock import FileLock

from rlopt.config.learners import LoraConfig
from rlopt.core.errors import RloptError, first_line
from rlopt.models import lora, tiny
from rlopt.models.untrusted import check_folder, refuse_lacking

Progress = Callable[[int, int, float], None]


def find_model(path: str, progress: Progress) -> Path:
    """The folder of the model that `model.path` names; a tiny one is trained first if it never was on this machine.

    Raises:
        RloptError: no such folder and, for a Hub name, none cached and none to be fetched; or a tiny model cannot be kept.
    """
    if path in tiny.RECIPES:
        recipe = tiny.RECIPES[path]
        key = hashlib.blake2b(json.dumps(asdict(recipe), sort_keys=True).encode(), digest_size=6).hexdigest()
        folder = cache_dir() / f"{path}-{key}"
        if not folder.is_dir():  # else nothing is written: the cache may be there to be read alone
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(folder.with_suffix(".lock")):  # runs that begin together train it once
                    if not folder.is_dir():
                        tiny.train(recipe, folder, progress, tiny.TASKS.get(path, tiny.ARITHMETIC))
            except OSError as error:
                why = error.strerror or first_line(error)
                raise RloptError(f"RLOPT_CACHE={folder.parent}: cannot be written ({why}); name a folder that can") from error
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RloptError(f"model.path={path}: the folder has no config.json; give a folder that transformers saved")
        check_folder(path, folder)
        _check_weights(folder)
        return folder.resolve()
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise RloptError(f"model.path={path}: no such folder; give a folder, a Hub name, or one of {', '.join(tiny.RECIPES)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        fetched = Path(snapshot_download(path, ignore_patterns=["*.bin", "*.pth", "*.pt", "original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = first_line(error)
        raise RloptError(
            f"model.path={path}: no such folder, and the Hub did not give it ({reason}); check name and network"
        ) from error
    check_folder(path, fetched)
    _check_weights(fetched)
    return fetched


def _check_weights(folder: Path) -> None:
    """Refuse a folder whose files do not have every weight that its config asks for. It reads what tensors there are, and none
    of them.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            return  # its weights have names and sizes of their own
        with without_bars(), _without_tables():
            _, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                device_map="meta",
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # configs check themselves, each in its own way
        raise RloptError(f"model.path={folder}: cannot be read as a model ({first_line(error)}); check its files") from error
    refuse_lacking(folder, found)
    if unused := sorted(found["unexpected_keys"]):
        told = f"{len(unused)} weight(s) in its files are not used, such as {unused[0]}: config.json asks for none of them"
        print(f"warning: model.path={folder}: {told}", file=sys.stderr)


@contextmanager
def without_bars() -> Iterator[None]:
    """In here transformers shows no progress bars."""
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def _without_tables() -> Iterator[None]:
    """In here transformers shows no table of weights that do not fit."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def cache_dir() -> Path:
    """`$RLOPT_CACHE`, else `~/.cache/rlopt`."""
    return Path(os.environ.get("RLOPT_CACHE") or "~/.cache/rlopt").expanduser()


PROBE = (
    "Step 1: 7*3=21\nAnswer: 21.\n\n  It's  12,345 \t[x]  na\u00efve caf\u00e9 \u4f60\u597d\u3002 \u0440\u0443\u0441 \U0001f642"
)
"""A text with what tokenizers cut in different ways: line breaks, spaces, digits, apostrophes, scripts."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, without its warning about long texts: our readers check lengths themselves.

    It is the one that `tokenizer.json` describes. transformers goes by the type of the model instead, and gives a model of
    Qwen2's architecture Qwen2's way to cut texts, whatever stands in its file: line breaks and spaces were lost so.

    Raises:
        RloptError: it cannot be read, is empty, or ends texts with a token that the model has not.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        file = folder / "tokenizer.json"
        if file.is_file() and not _agrees(tokenizer, file):
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # each kind of tokenizer raises errors of its own
        raise RloptError(f"model.path={folder}: its tokenizer cannot be read ({first_line(error)}); check the files") from error
    if not tokenizer.encode(PROBE, add_special_tokens=False):
        raise RloptError(f"model.path={folder}: its tokenizer knows no token; are tokenizer.json and its like in the folder?")
    tokenizer.rlopt_known = _known(folder)
    if tokenizer.rlopt_known and (tokenizer.eos_token_id or 0) >= tokenizer.rlopt_known:
        raise RloptError(
            f"model.path={folder}: its tokenizer ends texts with token {tokenizer.eos_token_id}, and the model's embeddings "
            f"have {tokenizer.rlopt_known}; resize them (resize_token_embeddings), or name another eos_token"
        )
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _known(folder: Path) -> int | None:
    """How many tokens the model in a folder has embeddings for; None: it does not say."""
    if not (folder / "config.json").is_file():
        return None
    found: int | None = getattr(transformers.AutoConfig.from_pretrained(folder).get_text_config(), "vocab_size", None)
    return found


def _agrees(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer cuts the probe as the one in its file does."""
    there = tokenizers.Tokenizer.from_file(str(file))
    return bool(tokenizer.encode(PROBE, add_special_tokens=False) == there.encode(PROBE, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Shape:
    """A model's sizes, from its config alone. Tied parameters count once; `trainable` are all, or adapters alone;
    `intermediate` is the feed-forward part's width for one token, in a mixture that of all experts which the token visits.
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def shape_of(folder: Path | str, adapters: LoraConfig | None = None) -> Shape:
    """Of the model in `folder`, or of a name of the Hub, without loading a weight.

    Raises:
        RloptError: there is no such config, or the Hub does not give it; or it has no such layers to adapt.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            lm = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # configs check themselves, each in its own way
        reason = first_line(error)
        raise RloptError(f"model.path={folder}: its config cannot be read ({reason}); check name and network") from error
    text = config.get_text_config()
    heads = text.num_attention_heads
    hidden: int = text.hidden_size
    parameters = trainable = sum(p.numel() for p in lm.parameters())
    if adapters and adapters.rank:
        lora.adapt(lm, adapters)
        trainable = sum(p.numel() for _, p in lora.split(lm)[1])
    return Shape(
        parameters=parameters,
        trainable=trainable,
        layers=text.num_hidden_layers,
        hidden=hidden,
        intermediate=_intermediate(text) or 4 * hidden,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        vocabulary=text.vocab_size,
    )


def _intermediate(text: Any) -> int:
    width: int = getattr(text, "intermediate_size", None) or 0
    visited: int = getattr(text, "num_experts_per_tok", None) or 0
    if not visited:
        return width
    expert: int = getattr(text, "moe_intermediate_size", None) or width
    shared: int = getattr(text, "shared_expert_intermediate_size", None) or 0
    return visited * expert + (shared or (getattr(text, "n_shared_experts", None) or 0) * expert)


def context_length(folder: Path) -> int:
    """The model's context length in tokens.

    Raises:
        RloptError: its config does not say.
    """
    positions = getattr(transformers.AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    if positions is None:
        raise RloptError(
            f"model.path={folder}: its config does not say how many positions it knows; add max_position_embeddings to it"
        )
    return int(positions)
