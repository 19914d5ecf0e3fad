"""Attention of bfloat16 models on CPUs, in float32: torch's backward pass in bfloat16 is several times slower."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IN_FLOAT32 = "sdpa_in_float32"


def attend_in_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' scaled dot-product attention of `[batch, heads, tokens, head_dim]`, with float32 inside."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    result, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return result.to(query.dtype), None


AttentionInterface.register(IN_FLOAT32, attend_in_float32)
AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)
