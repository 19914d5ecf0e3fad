"""Models: where their folder is, and the policy as the learner sees it: token ids in, log-probabilities and entropy out."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from torch import Tensor

from rlopt import lora, tiny
from rlopt.config import LoraConfig
from rlopt.errors import RloptError, first_line
from rlopt.head import Head, after_body

Progress = Callable[[int, int, float], None]


def find_model(path: str, progress: Progress) -> Path:
    """The folder of the model that `model.path` names; a tiny one is trained first if it never was on this machine.

    Raises:
        RloptError: no such folder and, for a Hub name, none cached and none to be fetched.
    """
    if path in tiny.RECIPES:
        recipe = tiny.RECIPES[path]
        key = hashlib.blake2b(json.dumps(asdict(recipe), sort_keys=True).encode(), digest_size=6).hexdigest()
        folder = cache_dir() / f"{path}-{key}"
        if not folder.is_dir():  # else nothing is written: the cache may be there to be read alone
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):  # runs that begin together train it once
                if not folder.is_dir():
                    tiny.train(recipe, folder, progress)
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RloptError(f"model.path={path}: the folder has no config.json; give a folder that transformers saved")
        return folder.resolve()
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise RloptError(f"model.path={path}: no such folder; give a folder, a Hub name, or one of {', '.join(tiny.RECIPES)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(path, ignore_patterns=["*.bin", "*.pth", "*.pt", "original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = first_line(error)
        raise RloptError(
            f"model.path={path}: no such folder, and the Hub did not give it ({reason}); check name and network"
        ) from error


def cache_dir() -> Path:
    """`$RLOPT_CACHE`, else `~/.cache/rlopt`."""
    return Path(os.environ.get("RLOPT_CACHE") or "~/.cache/rlopt").expanduser()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`. It does not warn of long texts: whoever reads them looks at their length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


@dataclass(frozen=True)
class Shape:
    """A model's sizes, from its config alone. Tied parameters count once; `trainable` are all, or adapters alone."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def shape_of(folder: Path | str, adapters: LoraConfig) -> Shape:
    """Of the model in `folder`, or of a name of the Hub, without loading a weight.

    Raises:
        RloptError: there is no such config, or the Hub does not give it; or it has no such layers to adapt.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise RloptError(f"model.path={folder}: its config cannot be read ({reason}); check name and network") from error
    text = config.get_text_config()
    heads = text.num_attention_heads
    hidden: int = text.hidden_size
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(config)
    parameters = trainable = sum(p.numel() for p in lm.parameters())
    if adapters.rank:
        lora.adapt(lm, adapters)
        trainable = sum(p.numel() for _, p in lora.split(lm)[1])
    return Shape(
        parameters=parameters,
        trainable=trainable,
        layers=text.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        vocabulary=text.vocab_size,
    )


def context_length(folder: Path) -> int:
    """Positions that the model knows, in tokens.

    Raises:
        RloptError: its config does not say.
    """
    positions = getattr(transformers.AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    if positions is None:
        raise RloptError(
            f"model.path={folder}: its config does not say how many positions it knows; add max_position_embeddings to it"
        )
    return int(positions)


class Policy(torch.nn.Module):
    """A causal language model that scores sequences. It has no dropout: every ratio is against what the same weights said.

    Logits are made the model's own way, divided by the sampling temperature and reduced `chunk` tokens at a time, and made
    again in the backward pass, so that `[B, T, vocabulary]` never stands in memory.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, chunk: int, recompute: bool = False) -> None:
        super().__init__()
        config = transformers.AutoConfig.from_pretrained(folder)
        for part in _parts(config):
            for name, value in vars(part).items():
                if _is_noise(name) and isinstance(value, int | float):
                    setattr(part, name, 0.0)
        # Scaled dot-product attention has no soft cap and would leave it out without a word.
        capped = any(getattr(part, "attn_logit_softcapping", None) for part in _parts(config))
        attention = {"attn_implementation": "eager"} if capped else {}
        self.lm = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, **attention)
        for module in self.lm.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0
        self.lm.config.use_cache = False
        if recompute:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.head = Head(chunk)

    def forward(self, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and full-softmax entropy in nats of each token where `mask` is 1, both `[B, T]` float32.

        Right padding needs no attention mask: a causal model reads nothing to the right of a token.
        """
        hidden = self.lm.base_model(input_ids=token_ids).last_hidden_state[:, :-1]
        wanted = mask[:, 1:] > 0
        scored = self.head(hidden[wanted], token_ids[:, 1:][wanted], temperature, after_body(self.lm))
        filled = scored.new_zeros((*token_ids.shape, 2))
        filled[:, 1:][wanted] = scored
        return filled[..., 0], filled[..., 1]

    @property
    def head_parameters(self) -> list[torch.nn.Parameter]:
        """What the model's way from hidden states to logits reads, an embedding that it shares with the body among them."""
        name, lm = self.lm.base_model_prefix, self.lm
        return [p for child_name, child in lm.named_children() if child_name != name for p in child.parameters()]


def refuse_other_logits(policy: Callable[..., tuple[Tensor, Tensor]], lm: Any, device: str) -> None:
    """Refuse a model of which `Policy` says something else than its own forward pass; a collective under ZeRO-3.

    Args:
        policy: the `Policy` as it learns, or the engine around it; in training mode, to find what acts there alone.
        lm: the model in it.

    Raises:
        RloptError: a log-probability differs.
    """
    config = lm.config.get_text_config()
    ids = torch.arange(1, PROBE_TOKENS + 1, device=device)[None] * max(1, config.vocab_size // (PROBE_TOKENS + 1))
    mask = torch.ones(ids.shape, device=device)
    mask[:, 0] = 0
    name, allowed = type(lm).__name__, TOLERANCE[str(lm.dtype).removeprefix("torch.")]
    with torch.no_grad():
        try:
            said, _ = policy(ids, mask, 1.0)
        except Exception as error:  # whatever the code of a model raises that has another shape than we know
            reason = first_line(f"{type(error).__name__}: {error}")
            raise RloptError(f"model.path: a policy cannot be made of {name} ({reason}); use another model") from error
        was_training = lm.training
        lm.eval()
        own = own_logprobs(lm, ids)
        lm.train(was_training)
    gap = (said[:, 1:] - own).abs().max().item()
    if not gap <= allowed:
        raise RloptError(
            f"model.path: {name} gives a token another log-probability in its own forward pass than while it learns, by "
            f"{gap:.1e} nats ({allowed:.0e} allowed); use another model"
        )


PROBE_TOKENS = 8

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats that a token's log-probability may differ by: kernels differ, and bfloat16 rounds logits near 16 by 0.06."""


def own_logprobs(lm: Any, ids: Tensor) -> Tensor:
    """Of every token after the first, `[B, T - 1]`, as transformers' own forward pass has it."""
    logits: Tensor = lm(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]


def _parts(config: Any) -> list[Any]:
    """A config and those of its parts: text, vision, ..."""
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    return [config, *(part for one in inner for part in _parts(one))]


def _is_noise(key: str) -> bool:
    """Whether a key of a model's config is how much chance acts while it trains: `attention_dropout`, `layerdrop`, ..."""
    return any(word in key for word in ("drop", "jitter"))


def write_model(source: Path, dtype: torch.dtype, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write `weights` as a model of the kind of that in `source`, which transformers and vLLM load; whole tensors by name."""
    config = transformers.AutoConfig.from_pretrained(source)
    config.dtype = dtype
    with torch.device("meta"):
        bare = transformers.AutoModelForCausalLM.from_config(config)
    save_model(bare, source, folder, state_dict=dict(weights))


def save_model(lm: Any, source: Path, folder: Path, **options: Any) -> None:
    """Write a model, with the generation config of `source` byte for byte.

    Many models come with one that transformers reads and refuses to write, such as a `temperature` beside `do_sample: false`.
    """
    lm.generation_config = transformers.GenerationConfig.from_model_config(lm.config)
    lm.save_pretrained(folder, **options)
    if (file := source / "generation_config.json").is_file():
        shutil.copyfile(file, folder / file.name)


def try_to_save(source: Path, dtype: torch.dtype, tokenizer: Any) -> None:
    """Write all of a checkpoint's model but its weights, and forget it: what cannot be saved is refused before it has learned.

    Raises:
        RloptError: transformers cannot write the config or the tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.disable_progress_bar()  # of writing nothing, above whatever is refused next
        try:
            write_model(source, dtype, {}, Path(folder))
            tokenizer.save_pretrained(folder)
        except Exception as error:  # whatever transformers' own checks and the model's tokenizer may raise
            reason = " ".join(str(error).split())[:300]
            raise RloptError(
                f"model.path={source}: cannot be saved again ({type(error).__name__}: {reason}); mend it"
            ) from error
        finally:
            if bars:
                transformers.logging.enable_progress_bar()
