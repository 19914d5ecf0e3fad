"""Low-rank adapters, through `peft`: beside a frozen weight `W` two thin matrices learn, and `W + scale * B @ A` acts.

Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685. The learner sends `A` and `B` alone. Engines merge them into the weights
that they loaded at their start, so that sampling is as fast as without adapters; in bfloat16 the merged weight is rounded,
where the learner adds in full precision: the canaries of a synchronization measure the difference.

While they are sent, adapters are named after the weight that they belong to: `layers.0.mlp.up_proj.weight.lora_A` and
`.lora_B`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlopt.config.learners import LoraConfig
from rlopt.core.errors import RloptError

A, B = ".lora_A", ".lora_B"


def adapt(lm: Any, config: LoraConfig) -> None:
    """Freeze a model and put adapters beside its linear layers, `B` at zero: they change nothing yet.

    Raises:
        RloptError: the model has no linear layer of such a name. The head does not count: it may be tied to the embedding.
    """
    import peft

    linear = {name.rpartition(".")[2] for name, module in lm.base_model.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(linear if config.targets == "all-linear" else set(config.targets))
    if not targets:
        raise RloptError(f"learner.lora.rank={config.rank}: the model has no linear layers to adapt; set it to 0")
    if unknown := [name for name in targets if name not in linear]:
        raise RloptError(
            f"learner.lora.targets={config.targets}: the model has no linear layer {unknown[0]}; "
            f"all-linear, or some of {', '.join(sorted(linear))}"
        )
    lm.add_adapter(peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets))


@contextmanager
def adapters_disabled(lm: Any) -> Iterator[None]:
    """In here the model acts as it did before `adapt`."""
    lm.disable_adapters()
    try:
        yield
    finally:
        lm.enable_adapters()


def split(lm: Any) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The parameters of an adapted model: those it had before, under their own names, and its adapters."""
    frozen, adapters = [], []
    for name, parameter in lm.named_parameters():
        owner, found, _ = name.rpartition(".lora_")
        if found:
            half = name[len(owner) :].removesuffix(".default.weight")
            adapters.append((f"{owner}.weight{half}", parameter))
        else:
            frozen.append((name.replace(".base_layer.", "."), parameter))
    return frozen, adapters


def scaled(adapters: Iterable[tuple[str, Tensor]], scale: float) -> Iterator[tuple[str, Tensor]]:
    """With `scale` in every `B`, so that `merged` need not know it."""
    return ((name, tensor * scale if name.endswith(B) else tensor) for name, tensor in adapters)


def merged(weights: Iterable[tuple[str, Tensor]], adapters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`weights`, with scaled adapters added in float32. An adapter whose `A` or `B` is missing is left out: it was lost.

    `peft` merges a whole model in place, in the dtype of its weights. An engine has no such model, and a checkpoint needs the
    learner's adapters to stay apart.

    Raises:
        KeyError: an adapter belongs to none of `weights`.
    """
    left = {name.removesuffix(half) for name in adapters for half in (A, B) if name.endswith(half)}
    for name, tensor in weights:
        left.discard(name)
        if name + A in adapters and name + B in adapters:
            a, b = (adapters[name + half].to(tensor.device).float() for half in (A, B))
            tensor = (tensor.float() + b @ a).to(tensor.dtype)
        yield name, tensor
    if left:
        raise KeyError(f"{min(left)} has an adapter, and is not a weight of the model")


def write(lm: Any, adapters: Mapping[str, Tensor], folder: Path) -> None:
    """Write unscaled adapters as `peft` does, for `PeftModel.from_pretrained`."""
    from safetensors.torch import save_file

    lm.peft_config["default"].save_pretrained(folder)
    theirs = {_as_peft(name): tensor.contiguous() for name, tensor in adapters.items()}
    save_file(theirs, folder / "adapter_model.safetensors", {"format": "pt"})


def _as_peft(name: str) -> str:
    owner, half = name.rsplit(".weight", 1)
    return f"base_model.model.{owner}{half}.weight"
