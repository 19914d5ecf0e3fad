"""How many bytes torch's tensors hold, on a CPU too, where torch does not count them."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Within it, `now` are the bytes of all storages that an operation was given or made and that are there, and `most` is the
    largest value that `now` had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def see(self, values: Any) -> None:
        """Count the tensors in `values`, which no operation may have touched yet."""
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":  # a meta tensor has a size and no memory
                self._count(value.untyped_storage())
        self.most = max(self.most, self.now)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._gone, key)
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        said = func(*args, **(kwargs or {}))
        self.see((args, kwargs, said))
        return said
