"""Sequences of a micro-batch one after another in one row, without padding between them.

A token's position says where its sequence begins, and transformers lets no token attend to another sequence's. What follows the
last token that is scored is left out: a causal model reads nothing to the right of a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """`kept`: `[B, T]` bool, the tokens that are in the row, N of them."""

    kept: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Packing":
        """The tokens up to the last one where `mask` `[B, T]` is 1, and the first of every sequence."""
        places = torch.arange(mask.shape[1], device=mask.device)
        last = ((mask > 0) * places).amax(1, keepdim=True)
        return cls(places <= last)

    def row(self, tokens: Tensor) -> Tensor:
        """`[B, T]` to `[1, N]`."""
        return tokens[self.kept][None]

    def positions(self) -> Tensor:
        """`[1, N]`: the place of each token in its sequence."""
        return self.row(torch.arange(self.kept.shape[1], device=self.kept.device).expand(self.kept.shape))

    def padded(self, row: Tensor) -> Tensor:
        """`[1, N]` to `[B, T]`, 0 elsewhere."""
        filled = row.new_zeros(self.kept.shape)
        filled[self.kept] = row[0]
        return filled
