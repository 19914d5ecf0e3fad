"""A model's layers compiled by `torch.compile` (`learner.compile`), with a cache beside the models."""

import os
import shutil
from pathlib import Path
from typing import Any

from rlopt.core.errors import RloptError
from rlopt.models.loading import cache_dir

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_layers(lm: Any, device: str) -> None:
    """Have everything below the head compiled, in place, when it is first called. Parameters keep their names.

    Compiled once for all shapes: micro-batches have many. What was compiled is kept in `compiled` beside the tiny models, so
    that a later start of the same model takes less time.

    Raises:
        RloptError: there is no C++ compiler for code on CPUs.
    """
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and not shutil.which(compiler):
        raise RloptError(f"learner.compile=true: needs a C++ compiler, and {compiler} is not there; install it, or use false")
    if Path(os.environ.get(CACHE, "torchinductor_")).name.startswith("torchinductor_"):  # torch's own, in /tmp
        os.environ[CACHE] = str(cache_dir() / "compiled")
    lm.base_model.compile(dynamic=True)
