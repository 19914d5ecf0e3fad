"""A communicator that hangs, dies and comes back, hand-written: nobody waits without end, and everything is sent again."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fakes import sent
from test_sync import make
from torch import Tensor

from rlopt.core.errors import RloptError
from rlopt.core.protocols import Sent
from rlopt.weight_sync import group_sender
from rlopt.weight_sync.group_sender import GroupSender
from rlopt.weight_sync.sender import TensorSpec


class Model:
    """Three tensors; `gone` is how many were gone through, in which other ranks take part."""

    gone = 0

    def metadata(self) -> list[TensorSpec]:
        return []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in "abc":
            self.gone += 1
            yield name, torch.zeros(1)


@dataclass
class Client:
    """Engines 4 and 6."""

    faults: dict[int, str] = field(default_factory=dict)

    def blame(self, why: str) -> None:
        for number in (4, 6):
            self.faults.setdefault(number, why)


@dataclass
class Group:
    """A communicator with those engines; after `sends` tensors it does what it is told to."""

    source: Any
    client: Client
    does: str = "well"
    ended: threading.Event = field(default_factory=threading.Event)

    def send_weights(self) -> None:
        for name, _ in self.source:
            if name == "b" and self.does == "hangs":
                self.ended.wait(30)
                raise RuntimeError("NCCL error: aborted")
            if name == "b" and self.does == "loses engine 4":
                self.client.faults[4] = "the engine died during update_weights"
                self.ended.wait(30)
                raise RuntimeError("NCCL error: aborted")
            if name == "b" and self.does == "raises":
                raise RuntimeError("NCCL error: unhandled system error")
            if name == "b" and self.does == "hangs for good":
                threading.Event().wait(3)

    def shutdown(self) -> None:
        self.ended.set()


Made = Callable[[str], tuple[GroupSender, Model, Client]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(group_sender, "GRACE_S", 0.3)
    monkeypatch.setattr(group_sender, "LOOK_S", 0.01)

    def make(does: str) -> tuple[GroupSender, Model, Client]:
        model, client = Model(), Client()
        return GroupSender(lambda source: Group(source, client, does), model, client, deadline_s=1.0), model, client

    return make


def test_a_sending_that_goes_well_keeps_its_communicator(made: Made) -> None:
    sender, model, client = made("well")
    sender.send_weights()
    sender.send_weights()
    assert (sender.broken, client.faults, model.gone) == (False, {}, 6)


@pytest.mark.parametrize(
    ("does", "faults"),
    [
        ("hangs", {4: "the weights were not received in 1 s", 6: "the weights were not received in 1 s"}),
        ("raises", {4: "NCCL error: unhandled system error", 6: "NCCL error: unhandled system error"}),
        ("loses engine 4", {4: "the engine died during update_weights", 6: "the weights were not received in 0 s"}),
    ],
)
def test_a_communicator_that_hangs_or_dies_is_ended_and_the_other_ranks_are_not_left_waiting(
    does: str, faults: dict[int, str], made: Made
) -> None:
    sender, model, client = made(does)
    sender.send_weights()
    assert sender.broken
    assert {number: why.partition(" (")[0] for number, why in client.faults.items()} == faults
    assert model.gone == 3  # also the tensors after the one at which it ended


def test_a_sending_that_survives_its_communicator_is_an_error(made: Made) -> None:
    sender, _, _ = made("hangs for good")
    with pytest.raises(RloptError, match="a sending does not end, although its communicator has"):
        sender.send_weights()


def test_the_learner_is_connected_to_the_engines_that_are_left_and_everything_is_sent_again() -> None:
    sync, engines, trainer, diary = make()
    sync.to(1)
    broken = [Sent(8, 0.1, {0: "the engine died during update_weights", 1: "the weights were not received"}, {0}, broken=True)]
    original = trainer.sync
    trainer.sync = lambda version, only, meanwhile=None: broken.pop() if broken else original(version, only)  # type: ignore[method-assign,assignment]
    metrics = sync.to(2)
    assert [number for number, _ in engines.lost] == [0]
    assert trainer.connected == [[0, 1], [1]]
    assert trainer.sent_to == [None, None]  # to all of the new communicator: it has no other way
    assert (metrics["sync/faults"], sync.version) == (1, 2)
    assert diary.events == ["sync", "sync_fault", "sync"]


def test_a_communicator_that_never_comes_back_ends_the_run() -> None:
    sync, _, trainer, _ = make()
    trainer.sync = lambda *_: Sent(8, 0.1, {1: "NCCL error"}, set(), broken=True)  # type: ignore[method-assign]
    with pytest.raises(RloptError, match="sync of version 2: engine 1: NCCL error; sent 3 times without success"):
        sync.to(2)
    assert len(trainer.connected) == 3
    assert sent().broken is False
