"""What an engine refuses before vLLM is asked, and the random numbers that it draws with."""

import ctypes

import pytest
import torch

from rlopt.core.errors import RloptError
from rlopt.rollout.seed_blocks import BLOCK, SeedBlocks
from rlopt.rollout.vllm_engine import need_libnuma


def test_a_machine_without_libnuma_is_refused_before_vllm_fails_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    need_libnuma()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(RloptError, match=r"vLLM for CPUs needs libnuma \(libnuma.so.1: cannot .*; apt-get install libnuma1"):
        need_libnuma()


def test_numbers_in_blocks_are_those_that_a_generator_gives_one_by_one_whatever_else_draws() -> None:
    def alone(seed: int, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(count)]

    blocks, count = SeedBlocks(), 2 * BLOCK + 3
    first, second = torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)
    drawn = [(blocks.next(first), blocks.next(second) if i % 2 else None) for i in range(count)]
    assert [number for number, _ in drawn] == alone(7, count)
    assert [number for _, number in drawn if number is not None] == alone(8, count // 2)
