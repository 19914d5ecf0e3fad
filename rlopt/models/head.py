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
        self.scores: type[torch.autograd.Function] = TokenScores

    def forward(
        self, hidden: Tensor, targets: Tensor, temperature: float, logits: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`[tokens, hidden]` and `[tokens]` to log-probability and entropy `[tokens]`. No tokens are one empty chunk.

        The logits of every chunk but the last are made again in the backward pass. It begins with the last one, which would be
        made again at once.
        """

        def scored(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            return self.scores.apply(logits(rows), wanted, temperature)  # type: ignore[no-any-return, no-untyped-call]

        starts = range(0, max(len(targets), 1), self.chunk)
        cuts = [slice(start, start + self.chunk) for start in starts]
        chunks = [checkpoint(scored, hidden[cut], targets[cut], use_reentrant=False) for cut in cuts[:-1]]
        chunks.append(scored(hidden[cuts[-1]], targets[cuts[-1]]))
        logprobs, entropy = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropy)


class TokenScores(torch.autograd.Function):
    """Log-probability of a token and entropy of its distribution, from logits of any type; one float32 tensor is kept.

    With `z = logits / temperature`, `p = softmax(z)` and `H = -sum p log p`: `d log p[y] / dz = onehot(y) - p` and
    `dH / dz = -p (log p + H)`. Where a loss does not read the entropy, its gradient is not computed. Beside the logits, or
    their gradient, two float32 tensors of their shape are there at a time, and three where the entropy has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """`[tokens, vocabulary]` and `[tokens]` to two float32 `[tokens]`."""
        ctx.set_materialize_grads(False)
        log_p = torch.log_softmax(logits.float() if temperature == 1 else logits.float() / temperature, dim=-1)
        entropy = -log_p.exp().mul_(log_p).sum(-1)
        ctx.save_for_backward(log_p, targets, entropy)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return log_p.gather(-1, targets[:, None])[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, of_logprob: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        if of_logprob is None and of_entropy is None:
            return None, None, None
        log_p, targets, entropy = ctx.saved_tensors
        pull = torch.zeros_like(entropy) if of_logprob is None else of_logprob
        gradient = log_p.exp()
        if of_entropy is None:
            gradient *= -pull[:, None]
        else:
            gradient *= (log_p + entropy[:, None]).mul_(-of_entropy[:, None]).sub_(pull[:, None])
        gradient.scatter_add_(-1, targets[:, None], pull[:, None])
        if ctx.temperature != 1:
            gradient /= ctx.temperature
        return gradient.to(ctx.dtype), None, None


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

    def forward(self, *inputs: object, **options: object) -> _Said:
        return self._said

    def decoder(self, *inputs: object, **options: object) -> _Said:
        """OPT asks the body's decoder. A method: an attribute would hold this module, and the hidden states, in a circle."""
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
