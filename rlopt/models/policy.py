"""The policy as the learner sees it: token ids in, log-probabilities and entropy out; and writing it to a folder."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import pad

from rlopt.core.errors import RloptError, first_line
from rlopt.models.head import Head, after_body
from rlopt.models.loading import without_bars
from rlopt.models.packing import Packing
from rlopt.models.sequence_parallel import ULYSSES, SharedSequences, unshared
from rlopt.models.untrusted import refuse_lacking


class Policy(torch.nn.Module):
    """A causal language model that scores sequences. It has no dropout: otherwise ratios would not be 1 on samples of the
    same weights.

    Logits are made the model's own way, divided by the sampling temperature and reduced `chunk` tokens at a time; those of one
    chunk are in memory at a time, in the backward pass as well.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        chunk: int,
        recompute: bool = False,
        device: str = "cpu",
        shared: SharedSequences | None = None,
        packed: bool = False,
    ) -> None:
        """Load the model in `folder`.

        Args:
            shared: the ranks that have a part of every sequence each; None: this one has all of it.
            packed: whether sequences are laid one after another, without padding.

        Raises:
            RloptError: the files lack a weight.
        """
        super().__init__()
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for part in _parts(config):
            for name, value in vars(part).items():
                if _is_noise(name) and isinstance(value, int | float):
                    setattr(part, name, 0.0)
        attention = _attention(config, dtype, device, packed)
        if shared:
            attention = {"attn_implementation": ULYSSES}
        self.lm, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True, **attention
        )
        refuse_lacking(folder, found)
        for module in self.lm.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0
        self.lm.config.use_cache = False
        if recompute:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.head, self.shared, self.packed = Head(chunk), shared, packed

    def forward(self, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and full-softmax entropy in nats of each token where `mask` is 1, both `[B, T]` float32.

        Right padding needs no attention mask: a causal model reads nothing to the right of a token.
        """
        ids, targets, wanted = token_ids, pad(token_ids[:, 1:], (0, 1)), pad(mask[:, 1:] > 0, (0, 1))
        where = {}
        packing = Packing.of(mask) if self.packed else None
        if packing:
            ids, targets, wanted = (packing.row(one) for one in (ids, targets, wanted))
            where["position_ids"] = packing.positions()
        if self.shared:
            ids, targets, wanted = (self.shared.part(one) for one in (ids, targets, wanted))
            where["position_ids"] = self.shared.positions(ids)
        hidden = self.lm.base_model(input_ids=ids, **where).last_hidden_state
        scores = self.head(hidden[wanted], targets[wanted], temperature, after_body(self.lm))
        filled = [score.new_zeros(ids.shape) for score in scores]
        for place, score in zip(filled, scores, strict=True):
            place[wanted] = score
        if packing:
            filled = [packing.padded(row) for row in filled]
        if self.shared:
            filled = [self.shared.whole(place, token_ids.shape[1]) for place in filled]
        logprobs, entropy = (pad(place[:, :-1], (1, 0)) for place in filled)  # of the next token, to that token
        return logprobs, entropy

    @property
    def head_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the model's way from hidden states to logits reads, a tied embedding among them."""
        name, lm = self.lm.base_model_prefix, self.lm
        return [p for child_name, child in lm.named_children() if child_name != name for p in child.parameters()]


def refuse_other_logits(policy: Callable[..., tuple[Tensor, Tensor]], lm: Any, device: str) -> None:
    """Refuse a model whose log-probabilities in `Policy` differ from those of its own forward pass; a collective under ZeRO-3.

    Args:
        policy: the `Policy` as it learns, or the engine around it; in training mode, to detect what acts only there.
        lm: the model in it.

    Raises:
        RloptError: a log-probability differs.
    """
    config = lm.config.get_text_config()
    row = torch.arange(1, PROBE_TOKENS + 1, device=device) * max(1, config.vocab_size // (PROBE_TOKENS + 1))
    ids = torch.stack([row, row.flip(0)])  # two, which must not read each other
    mask = torch.ones(ids.shape, device=device)
    mask[:, 0] = 0
    name, allowed = type(lm).__name__, TOLERANCE[str(lm.dtype).removeprefix("torch.")]
    with torch.no_grad():
        try:
            said, _ = policy(ids, mask, 1.0)
        except Exception as error:  # whatever a model's code raises that is built in a way we do not know
            reason = first_line(f"{type(error).__name__}: {error}")
            raise RloptError(f"model.path: a policy cannot be made of {name} ({reason}); use another model") from error
        was_training = lm.training
        lm.eval()
        with unshared():
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
    """Log-probabilities of every token after the first, `[B, T - 1]`, by transformers' own forward pass."""
    logits: Tensor = lm(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]


def _attention(config: Any, dtype: torch.dtype, device: str, packed: bool) -> dict[str, str]:
    """Which attention transformers is told to use; nothing: its own choice."""
    if packed and device != "cpu":
        return {"attn_implementation": "flex_attention"}  # skips what lies between sequences; others would mask it
    if any(getattr(part, "attn_logit_softcapping", None) for part in _parts(config)):
        return {"attn_implementation": "eager"}  # scaled dot-product attention has no soft cap and would leave it out silently
    if device == "cpu" and dtype == torch.bfloat16:
        from rlopt.models.attention import IN_FLOAT32  # imports all of transformers' attention, which the driver never needs

        return {"attn_implementation": IN_FLOAT32}
    return {}


def _parts(config: Any) -> list[Any]:
    """A config and those of its parts: text, vision, ..."""
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    return [config, *(part for one in inner for part in _parts(one))]


def _is_noise(key: str) -> bool:
    """Whether a key of a model's config sets noise in training: `attention_dropout`, `layerdrop`, ..."""
    return any(word in key for word in ("drop", "jitter"))


def write_model(source: Path, dtype: torch.dtype, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write whole tensors by name as a model like the one in `source`, which transformers and vLLM load."""
    config = transformers.AutoConfig.from_pretrained(source)
    config.dtype = dtype
    with torch.device("meta"):
        bare = transformers.AutoModelForCausalLM.from_config(config)
    save_model(bare, source, folder, state_dict=dict(weights))


def save_model(lm: Any, source: Path, folder: Path, **options: Any) -> None:
    """Write a model, with the generation config of `source` byte for byte.

    Many models come with one that transformers reads and refuses to write, such as a `temperature` beside `do_sample: false`.

    Raises:
        OSError: it cannot be written.
    """
    lm.generation_config = transformers.GenerationConfig.from_model_config(lm.config)
    try:
        lm.save_pretrained(folder, **options)
    except SafetensorError as error:
        raise OSError(first_line(error)) from error  # its only other reasons are in what is saved, which is a model
    if (file := source / "generation_config.json").is_file():
        shutil.copyfile(file, folder / file.name)


def try_to_save(source: Path, dtype: torch.dtype, tokenizer: Any) -> None:
    """Write a checkpoint's model without weights to a temporary folder: a model that cannot be saved is refused before
    training.

    Raises:
        RloptError: transformers cannot write the config or the tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder, without_bars():
        try:
            write_model(source, dtype, {}, Path(folder))
            tokenizer.save_pretrained(folder)
        except Exception as error:  # whatever transformers' own checks and the model's tokenizer may raise
            reason = " ".join(str(error).split())[:300]
            raise RloptError(
                f"model.path={source}: cannot be saved again ({type(error).__name__}: {reason}); mend it"
            ) from error
