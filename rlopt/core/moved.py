"""Earlier names of modules that users' own objectives and rewards import. They can be imported for one more release."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "rlopt.types": "rlopt.objectives.core",
    "rlopt.conformance": "rlopt.objectives.conformance",
    "rlopt.arithmetic": "rlopt.data.arithmetic",
    "rlopt.grading": "rlopt.rewards.math",
}


class _EarlierModules(MetaPathFinder, Loader):
    """Finds a module by its earlier name. Importing it warns, and gives the module of today."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        earlier = module.__name__
        warnings.warn(f"{earlier} is now {MODULES[earlier]}", FutureWarning, stacklevel=2)
        sys.modules[earlier] = importlib.import_module(MODULES[earlier])  # what the import statement then gives


def install() -> None:
    """Make Python know the earlier names, once."""
    if not any(isinstance(finder, _EarlierModules) for finder in sys.meta_path):
        sys.meta_path.append(_EarlierModules())
