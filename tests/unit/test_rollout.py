"""What an engine refuses before vLLM is asked."""

import ctypes

import pytest

from rlopt.core.errors import RloptError
from rlopt.rollout.vllm_engine import need_libnuma


def test_a_machine_without_libnuma_is_refused_before_vllm_fails_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    need_libnuma()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(RloptError, match=r"vLLM for CPUs needs libnuma \(libnuma.so.1: cannot .*; apt-get install libnuma1"):
        need_libnuma()
