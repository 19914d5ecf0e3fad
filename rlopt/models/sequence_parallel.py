"""Sequences that several ranks share (DeepSpeed's Ulysses, arXiv:2309.14509).

Each rank of a group has the next part of every sequence, and all layers but attention see that part alone. In attention ranks
exchange: each then has all tokens, and its share of the heads. Scores are gathered, so that a loss reads whole sequences. A
rank differentiates what its own tokens contribute to the loss; gradients are summed over ranks, as they are without this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

from rlopt.core.errors import RloptError, need

ULYSSES = "ulysses"
"""The name of this attention in transformers."""

_shared: "SharedSequences | None" = None
"""The group of this process, while attention goes over all of it."""


class SharedSequences:
    """A group of neighbouring ranks, and this rank's place in it."""

    def __init__(self, rank: int, world: int, size: int) -> None:
        """A collective: ranks 0 to `size` - 1 are a group, the next `size` another, and so on."""
        groups = [torch.distributed.new_group(range(first, first + size)) for first in range(0, world, size)]
        self.group, self.place, self.size = groups[rank // size], rank % size, size

    def part(self, tokens: Tensor) -> Tensor:
        """This rank's part of `[B, T]`, `[B, ceil(T / size)]`; zeros follow the last token."""
        padded = pad(tokens, (0, -tokens.shape[1] % self.size))
        return padded.chunk(self.size, dim=1)[self.place]

    def positions(self, part: Tensor) -> Tensor:
        """`[1, t]`: where the tokens of such a part stand in the sequence."""
        first = self.place * part.shape[1]
        return torch.arange(first, first + part.shape[1], device=part.device)[None]

    def whole(self, part: Tensor, length: int) -> Tensor:
        """All ranks' parts `[B, t]` as `[B, length]`, on every rank."""
        gathered: Tensor = _Gathered.apply(part, self)  # type: ignore[no-untyped-call]
        return gathered[:, :length]


class _Gathered(torch.autograd.Function):
    """Parts of all ranks, side by side. Every rank computes the same loss of them, so its own part of the gradient is whole."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shared: SharedSequences) -> Tensor:  # type: ignore[override]
        ctx.shared = shared
        parts = [torch.empty_like(part) for _ in range(shared.size)]
        torch.distributed.all_gather(parts, part.contiguous(), group=shared.group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.chunk(ctx.shared.size, dim=1)[ctx.shared.place], None


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values `[batch, tokens, heads, head_dim]` to what attention makes of them."""

Exchange = Callable[[Attend, Any], Callable[..., Tensor]]
"""An attention over all tokens, and a process group, to one over parts, which exchanges heads for tokens and back."""


def register(shared: SharedSequences | None, exchange: Exchange, in_float32: bool) -> None:
    """Make `ULYSSES` an attention of transformers that goes over `shared`.

    Args:
        in_float32: what is inside, as in `attention`.
    """
    global _shared
    _shared = shared
    if shared is None:
        return
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from rlopt.models.attention import attend_in_float32

    local = attend_in_float32 if in_float32 else sdpa_attention_forward

    def attend(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """`[batch, heads, tokens, head_dim]` of a part, to `[batch, tokens, heads, head_dim]` of it."""
        if _shared is None:
            result, _ = local(module, query, key, value, mask, **options)
            return result, None

        def of_all_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (one.transpose(1, 2) for one in (query, key, value))
            result: Tensor = local(module, query, key, value, None, **options | {"is_causal": True})[0]
            return result

        of_parts = exchange(of_all_tokens, _shared.group)
        return of_parts(*(one.transpose(1, 2) for one in (query, key, value))), None

    def mask(*asked: Any, **options: Any) -> Tensor | None:
        built: Tensor | None = None if _shared else sdpa_mask(*asked, **options)
        return built

    AttentionInterface.register(ULYSSES, attend)
    AttentionMaskInterface.register(ULYSSES, mask)


@contextmanager
def unshared() -> Iterator[None]:
    """In here each rank reads whole sequences of its own."""
    global _shared
    before, _shared = _shared, None
    try:
        yield
    finally:
        _shared = before


def check_shareable(folder: Path | str, size: int) -> None:
    """Refuse a model whose sequences `size` ranks cannot share: layers that read other tokens outside plain attention.

    Raises:
        RloptError: with the reason.
    """
    if size == 1:
        return
    text = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    key, heads = "learner.sequence_parallel", text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    for count, what in ((heads, "attention heads"), (kv_heads, "key-value heads")):
        need(count % size == 0, key, size, f"the model has {count} {what}, which ranks cannot share evenly; use a divisor")
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if getattr(text, "sliding_window", None) and getattr(text, "layer_types", None) is None:
        kinds.add("sliding_attention")
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        kinds.add(f"{rope['rope_type']} rope")
    if getattr(text, "attn_logit_softcapping", None):
        kinds.add("soft-capped attention")
    if kinds:
        raise RloptError(f"{key}={size}: the model has {', '.join(sorted(kinds))}, which ranks cannot share; set it to 1")
