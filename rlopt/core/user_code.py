"""Functions and classes of the user's, by the names that a config gives them."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from rlopt.core.errors import RloptError

Function = Callable[..., object]

MOVED = {"rlopt.grading": "rlopt.rewards", "rlopt.arithmetic": "rlopt.data.arithmetic"}
"""Modules whose functions users' configs name, by earlier names, and where they are now. These names stay valid."""


def current_name(name: str) -> str:
    """`module:function` with the current name of the module."""
    module, colon, attribute = name.rpartition(":")
    return f"{MOVED.get(module, module)}{colon}{attribute}"


def load(key: str, name: str, kind: str = "function") -> Function:
    """The function (or class, as `kind` says) that `name`, the value of the setting `key`, names.

    `module:function`, or `path/to/file.py:function`.

    Raises:
        RloptError: it cannot be imported, or is not callable.
    """
    module, colon, attribute = current_name(name).rpartition(":")
    try:
        function = getattr(_import(module), attribute)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise RloptError(f"{key}={name}: cannot be imported ({type(error).__name__}: {error}); want module:{kind}") from error
    if not colon or not callable(function):
        raise RloptError(f"{key}={name}: no {kind}; want module:{kind}")
    return function  # type: ignore[no-any-return]


def _import(module: str) -> ModuleType:
    """A module by its name, or by its file. Loaded from a file it can import its neighbours, its functions can be pickled,
    and it can start processes. If another module has its name, it gets a unique one.
    """
    if not module.endswith(".py"):
        return importlib.import_module(module)
    file = Path(module).expanduser().resolve()
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    name = file.stem if _is_free(file) else f"{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not spec or not spec.loader:
        raise ImportError("no Python file")
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found


def _is_free(file: Path) -> bool:
    """Whether no module other than the one in `file` has its name."""
    there = sys.modules.get(file.stem)
    if there is not None:
        return getattr(there, "__file__", None) == str(file)
    try:
        spec = importlib.util.find_spec(file.stem)
    except (ImportError, ValueError):  # not the name of a module
        return False
    return spec is None or spec.origin == str(file)
