"""A reference that waits in host memory."""

import pytest
import torch

from rlopt.models.parked import Parked


class Copied(Parked):
    """Its card is other memory of the CPU."""

    def _fetched(self, host: torch.Tensor) -> torch.Tensor:
        return host.clone()


def places(model: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


def test_weights_are_elsewhere_while_they_are_used_and_where_they_were_before_after_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4)).requires_grad_(False)
    parked, host, said = Copied(model, "cpu"), places(model), model(torch.ones(1, 3))
    for _ in range(2):
        with parked.on_card():
            assert not places(model) & host
            assert torch.equal(model(torch.ones(1, 3)), said)
        assert places(model) == host


def test_weights_are_back_after_an_error() -> None:
    model = torch.nn.Linear(3, 2)
    parked, host = Copied(model, "cpu"), places(model)
    with pytest.raises(ValueError), parked.on_card():  # noqa: PT011 - one of our own
        raise ValueError
    assert places(model) == host


def test_weights_that_share_memory_share_it_on_the_card() -> None:
    tied = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    with Copied(tied, "cpu").on_card():
        assert len(places(tied)) == 1


def test_buffers_go_to_the_device_for_good() -> None:
    model = torch.nn.BatchNorm1d(2)
    Parked(model, "meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
