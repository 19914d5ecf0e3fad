"""From a model's hidden states to scores: its own way to logits, some tokens at a time."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Head(torch.nn.Module):
    """From hidden states to scores, some tokens at a time, as one module without parameters of its own.

    ZeRO-3 gathers what a module reads whenever it is called. If each chunk were a call, a rank with more tokens than another
    would gather the head more often, and the ranks would wait for each other for ever.
    """

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """`[tokens, hidden]` and `[tokens]` to `[tokens, 2]`: log-probability and entropy. No tokens are one empty chunk."""

        def scored(rows: Tensor, wanted: Tensor) -> Tensor:
            log_p = torch.log_softmax(logits(rows).float() / temperature, dim=-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            return torch.stack([log_p.gather(-1, wanted[:, None])[:, 0], entropy], dim=-1)

        starts = range(0, max(len(targets), 1), self.chunk)
        cuts = [slice(start, start + self.chunk) for start in starts]
        return torch.cat([checkpoint(scored, hidden[cut], targets[cut], use_reentrant=False) for cut in cuts])


class _Said:
    """What a body says: hidden states, and nothing of all else that a model may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None


class _Body(torch.nn.Module):
    """Stands where a model's body is, and says the hidden states that it was given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._said = _Said(hidden)
        self.decoder = self.forward  # OPT asks the body's decoder

    def forward(self, *inputs: object, **options: object) -> _Said:
        return self._said


def after_body(lm: Any) -> Callable[[Tensor], Tensor]:
    """`lm`'s own way from hidden states `[tokens, hidden]` to logits `[tokens, vocabulary]`, with all it does after the head.

    It is the model's own `forward` around a body that returns these hidden states. The modules in it share `lm`'s weights and
    have no hooks: those of ZeRO-3 belong to the call around all chunks.
    """

    def logits(hidden: Tensor) -> Tensor:
        twin = _unhooked(lm, without=lm.base_model_prefix)
        twin._modules[lm.base_model_prefix] = _Body(hidden[None])
        said: Tensor = twin.forward(input_ids=hidden.new_zeros((1, len(hidden)), dtype=torch.int64), use_cache=False).logits
        return said[0]

    return logits


def _unhooked(module: torch.nn.Module, without: str = "") -> Any:
    """A copy that shares all weights and has no hooks; `without` is a child that is left out."""
    twin = copy.copy(module)
    twin.__dict__.update({name: OrderedDict() for name in vars(module) if name.startswith("_") and name.endswith("_hooks")})
    twin._modules = {name: child and _unhooked(child) for name, child in module._modules.items() if name != without}
    return twin
