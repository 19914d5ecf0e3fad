"""Models: where their folder is, and the policy as the learner sees it: token ids in, log-probabilities and entropy out."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlopt import lora, tiny
from rlopt.config import LoraConfig
from rlopt.errors import RloptError

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
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
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
        reason = str(error).strip().split("\n")[0]
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
        reason = str(error).strip().splitlines()[0]
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
    """Positions that the model knows, in tokens."""
    return int(transformers.AutoConfig.from_pretrained(folder).max_position_embeddings)


class Policy(torch.nn.Module):
    """A causal language model that scores sequences.

    Logits are made, divided by the sampling temperature and reduced `chunk` tokens at a time, and made again in the
    backward pass, so that `[B, T, vocabulary]` never stands in memory.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, chunk: int, recompute: bool = False) -> None:
        super().__init__()
        self.lm = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self.lm.config.use_cache = False
        if recompute:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.chunk = chunk

    def forward(self, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and full-softmax entropy in nats of each token where `mask` is 1, both `[B, T]` float32.

        Right padding needs no attention mask: a causal model reads nothing to the right of a token.
        """
        hidden = self.lm.base_model(input_ids=token_ids).last_hidden_state[:, :-1]
        wanted = mask[:, 1:] > 0
        rows, targets = hidden[wanted], token_ids[:, 1:][wanted]
        pieces = [
            checkpoint(self._score, rows[i : i + self.chunk], targets[i : i + self.chunk], temperature, use_reentrant=False)
            for i in range(0, max(len(rows), 1), self.chunk)
        ]
        scored = torch.cat(pieces)
        filled = scored.new_zeros((*token_ids.shape, 2))
        filled[:, 1:][wanted] = scored
        return filled[..., 0], filled[..., 1]

    def _score(self, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """`[tokens, hidden]` and `[tokens]` to `[tokens, 2]`: log-probability and entropy."""
        log_p = torch.log_softmax(self.lm.lm_head(hidden).float() / temperature, dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return torch.stack([log_p.gather(-1, targets[:, None])[:, 0], entropy], dim=-1)


def write_model(lm: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write `weights` as a model of `lm`'s kind, which transformers and vLLM load; `lm` itself may be sharded or adapted."""
    with torch.device("meta"):
        bare = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(lm.config))
    bare.config.use_cache = True  # off while it learns alone
    bare.generation_config = lm.generation_config
    bare.save_pretrained(folder, state_dict=dict(weights))
