"""Random numbers of many generators, without a call of torch for each number."""

from weakref import WeakKeyDictionary

import torch

SEED_RANGE = 2**31
BLOCK = 64
"""Numbers that a generator is asked for at once. Its sequence does not depend on it."""


class SeedBlocks:
    """The next number in [0, 2^31) of each generator: what `torch.randint(0, 2**31, (1,), generator=generator)` gives."""

    def __init__(self) -> None:
        self._ready: WeakKeyDictionary[torch.Generator, list[int]] = WeakKeyDictionary()

    def next(self, generator: torch.Generator) -> int:
        ready = self._ready.get(generator)
        if not ready:
            ready = torch.randint(0, SEED_RANGE, (BLOCK,), generator=generator).tolist()
            ready.reverse()
            self._ready[generator] = ready
        return ready.pop()
