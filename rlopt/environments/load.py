"""What `env.fn` and `env.tools` name: checked before a run starts, made again in the processes where episodes live."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlopt.config.environments import EnvConfig
from rlopt.core.errors import RloptError
from rlopt.core.user_code import load
from rlopt.environments.live import Factory, Live, OnlyTools, Run, Stepped, Tools, Verifiers, is_factory, methods_of
from rlopt.environments.open_env import OpenEnv


@dataclass(frozen=True)
class Maker:
    """Makes the environment of an episode. One of `verifiers` serves all, and is made once."""

    make: Callable[..., Any] | None
    options: Mapping[str, Any]
    functions: Mapping[str, Callable[..., Any]]
    timeout_s: float
    shared: list[Any] = field(default_factory=list)

    def prepare(self) -> None:
        """Make what serves all episodes, in the main thread: it may want to hear signals. Only functions make such."""
        if self.make is not None and inspect.isfunction(self.make):
            made = self.make(**self.options)
            self.shared[:] = [made] if hasattr(made, "env_response") else []

    def __call__(self, run: Run, overran: Callable[[], None]) -> Live:
        """A new one. `run` calls a function of the user's; `overran` is called when a tool did."""
        tools = Tools(self.functions, run, self.timeout_s, overran)
        if self.make is None:
            return OnlyTools(tools)
        made = self.shared[0] if self.shared else self.make(**self.options)
        if hasattr(made, "env_response"):
            self.shared[:] = [made]
            return Verifiers(made, run)
        if is_factory(made):
            return Factory(made, run, Tools({**methods_of(made), **self.functions}, run, self.timeout_s, overran))
        return Stepped(made, run, tools if self.functions else None)


def maker(config: EnvConfig) -> Maker:
    """What the section names, imported.

    Raises:
        RloptError: it cannot be imported, two tools have one name, or options do not fit.
    """
    functions = dict[str, Callable[..., Any]]()
    for name in config.tools:
        function = load("env.tools", name)
        called = getattr(function, "__name__", name.rpartition(":")[2])
        if called in functions:
            raise RloptError(f"env.tools={name}: there is another tool called {called}; the policy could not tell them apart")
        functions[called] = function
    make: Callable[..., Any] | None = None
    if config.fn:
        served = config.fn.startswith(("http://", "https://"))
        make = OpenEnv(config.fn).session if served else load("env.fn", config.fn, "Class")
        _check_options(make, config)
    return Maker(make, config.options, functions, config.timeout_s)


def schemas(config: EnvConfig) -> list[dict[str, Any]]:
    """The tools as chat templates read them; transformers makes them from names, types and docstrings.

    Raises:
        RloptError: a tool lacks a docstring, a type, or the description of an argument.
    """
    from transformers.utils import get_json_schema

    made = maker(config)
    tools = dict(made.functions)
    kind: Any = made.make
    if inspect.isclass(kind) and is_factory(kind):
        tools = {**{name: getattr(kind, name) for name in methods_of(object.__new__(kind))}, **tools}
    found = []
    for name, function in tools.items():
        try:
            found.append(get_json_schema(_without_self(function)))
        except Exception as error:  # each of its checks raises one of its own
            why = " ".join(str(error).split())
            raise RloptError(
                f"env.tools={name}: cannot be described to the model ({why}); give every argument a type and a line under "
                "Args: in a docstring in Google's style"
            ) from None
    return found


def _without_self(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as transformers describes it: a method without `self`, which the policy does not give."""
    parameters = inspect.signature(function).parameters
    if "self" not in parameters:
        return function

    def described() -> None: ...

    described.__name__, described.__doc__ = function.__name__, inspect.getdoc(function)
    described.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "self"}
    described.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one for name, one in parameters.items() if name != "self"]
    )
    return described


def _check_options(make: Callable[..., Any], config: EnvConfig) -> None:
    try:
        inspect.signature(make).bind(**config.options)
    except TypeError as error:
        raise RloptError(f"env.options={config.options}: do not fit env.fn={config.fn} ({error})") from None
    except ValueError:  # of a builtin, whose parameters cannot be read
        pass
