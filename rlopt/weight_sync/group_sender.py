"""Sending through a communicator of the learner and all engines, NCCL's: who is missing would keep all others waiting for ever.

So a sending has a deadline, and when an engine is at fault the others have a few seconds more. Then the communicator is ended,
and the driver connects the learner to the engines that are left: a new communicator, and everything is sent again.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from rlopt.core.errors import RloptError, first_line
from rlopt.weight_sync.sender import Client, Source, TensorSpec

GRACE_S = 5.0
"""Seconds that the healthy engines have to finish, once another has failed."""

LOOK_S = 0.1
"""Seconds between two looks at a sending."""


class Group(Protocol):
    """vLLM's sender, with its communicator."""

    def send_weights(self) -> None: ...

    def shutdown(self) -> None:
        """End the communicator, whoever waits in it."""
        ...


class Blamed(Protocol):
    """Where faults are kept: `EngineClient`."""

    faults: dict[int, str]

    def blame(self, why: str) -> None:
        """Every engine that has no fault yet has this one."""
        ...


class GroupClient(Client, Blamed, Protocol):
    """Both: `EngineClient`."""


class Drained:
    """A source whose rest can be gone through when a sending ended within it: other ranks wait in its collectives."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rest: Iterator[tuple[str, Tensor]] = iter(())

    def metadata(self) -> list[TensorSpec]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._rest = iter(self._source)
        for name, tensor in self._rest:  # noqa: UP028  # `yield from` would close it with this one
            yield name, tensor

    def drain(self) -> None:
        """Go through what is left."""
        for _ in self._rest:
            pass


class GroupSender:
    """`sender.Sender`. `broken` once the communicator was ended: then another sender is to be made."""

    def __init__(self, open_group: Callable[[Source], Group], source: Source, client: Blamed, deadline_s: float) -> None:
        """`open_group` meets the engines, and returns the sender that has the communicator with them."""
        self._source, self._client, self._deadline_s = Drained(source), client, deadline_s
        self._group = open_group(self._source)
        self.broken = False

    def send_weights(self) -> None:
        """Send everything, or record why it did not arrive.

        Raises:
            RloptError: the sending does not end though its communicator has.
        """
        raised = list[Exception]()
        sending = threading.Thread(target=on_this_card(lambda: self._send(raised)), daemon=True)
        began, faulty_since = time.monotonic(), None
        sending.start()
        while sending.is_alive():
            sending.join(LOOK_S)
            now = time.monotonic()
            faulty_since = faulty_since or (now if self._client.faults else None)
            if now - began > self._deadline_s or (faulty_since and now - faulty_since > GRACE_S):
                break
        if not sending.is_alive() and not raised:
            return
        late = f"the weights were not received in {time.monotonic() - began:.0f} s (cluster.step_deadline_s)"
        self._client.blame(first_line(raised[0]) if raised else late)
        self.close()
        sending.join(GRACE_S)
        if sending.is_alive():
            raise RloptError("sync.backend=nccl: a sending does not end, although its communicator has; restart the run")
        self._source.drain()

    def close(self) -> None:
        """End the communicator."""
        if not self.broken:
            self.broken = True
            self._group.shutdown()

    def _send(self, raised: list[Exception]) -> None:
        try:
            self._group.send_weights()
        except Exception as error:  # NCCL's and CUDA's own
            raised.append(error)


def on_this_card(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function`, to be called in another thread, on the card of this one."""
    if not torch.cuda.is_available():
        return function
    card = torch.cuda.current_device()

    def there() -> Any:
        with torch.cuda.device(card):
            return function()

    return there
