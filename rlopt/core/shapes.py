"""Shapes and types of the tensors that packages exchange. Tests check them at run time (`tests/unit/conftest.py`)."""

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Tokens = Float[Tensor, "B T"]
"""A number for each token of each sequence."""

Sequence = Float[Tensor, "B"]
"""A number for each sequence."""

SequenceOrTokens = Float[Tensor, "B"] | Float[Tensor, "B T"]
"""What an objective's advantages may be."""

TokenIds = Int[Tensor, "B T"]
Counts = Int[Tensor, "B"]
Flags = Bool[Tensor, "B"]

Mask = Num[Tensor, "B T"] | Bool[Tensor, "B T"]
"""1 or True on the tokens that count."""

Ratios = Float[Tensor, "B #T"]
"""A number for each token, or one for each sequence that broadcasts over its tokens."""
