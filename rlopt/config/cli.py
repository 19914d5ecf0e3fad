"""What all commands share: Hydra's command line before the work, and one line on standard error if it fails."""

import atexit
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from rlopt.config.compose import EARLIER_KEYS, conf_dir, translate
from rlopt.core import signals
from rlopt.core.errors import RloptError, StoppedEarly, first_line
from rlopt.core.garbage import collect_seldom

C = TypeVar("C")


class Shown(Console):
    """A console that shows nothing more when its reader is gone (`| head`), and raises nothing: a run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        signals.drop(self.file)


def compose(primary: str, arguments: Sequence[str]) -> list[DictConfig]:
    """The configs that these arguments make of `conf/<primary>.yaml`: one, or with `--multirun` several."""
    composed: list[DictConfig] = []
    command = hydra.main(config_path=str(conf_dir()), config_name=primary, version_base="1.3")(composed.append)
    with _command_line(arguments):
        command()
    return composed


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads `sys.argv`, and takes its arguments no other way."""
    before, sys.argv = sys.argv, [sys.argv[0], *(current_key(at_home(argument)) for argument in arguments)]
    try:
        yield
    finally:
        sys.argv = before


def run(
    primary: str,
    typed: Callable[[DictConfig], C],
    work: Callable[[C], None],
    interrupted: str | Callable[[C], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Do `work` for each config, and exit with one line if a user can act on the error.

    Args:
        interrupted: what a user who pressed Ctrl-C should know, or what says it of the config that was being worked on.
        arguments: of the command; None: those that it was given.
    """
    signals.interrupts()
    collect_seldom()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us here instead of being printed by Hydra
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # we report an unreachable Hub ourselves, in one line
    config: C | None = None
    try:
        for config in [typed(composed) for composed in compose(primary, sys.argv[1:] if arguments is None else arguments)]:
            work(config)
    except RloptError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {refusal(error, primary)}")
    except (KeyboardInterrupt, StoppedEarly):
        said = interrupted if isinstance(interrupted, str) else interrupted(config) if config else "nothing was started"
        print(f"interrupted: {said}", file=sys.stderr)
        sys.exit(130)


def whole_process(main: Callable[[], None]) -> None:
    """Be the command `main`: run it, and what libraries do at exit, and end.

    Python would then look for garbage among a million objects of vLLM's and torch's, for two seconds.
    """
    ended: list[int] = []
    atexit.register(lambda: _end(ended))  # called last, because libraries that are imported from here on register after it
    try:
        main()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        ended.append(error.code if isinstance(error.code, int) else int(error.code is not None))
    except BrokenPipeError:  # whoever read what was printed has seen enough
        signals.drop(sys.__stdout__)
        ended.append(1)
    else:
        ended.append(0)


def _end(ended: list[int]) -> None:
    if ended:  # else Python shows an error
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed: nobody reads it
                stream.flush()
        os._exit(ended[0])


def at_home(argument: str) -> str:
    """An argument with the home for `~/` where a path may begin: neither a shell nor Hydra expands it after `=`."""
    return re.sub(r"(?<=[=\[,])~(?=/|$)", lambda _: os.path.expanduser("~"), argument)


def current_key(argument: str) -> str:
    """An argument with the present name of its key; says so where it has an earlier one."""
    for before, now in EARLIER_KEYS.items():
        if re.match(rf"[+~]*algo\.{before}(=|$)", argument):
            print(f"algo.{before} is now algo.{now}; the earlier name works for one more release", file=sys.stderr)
            return argument.replace(f"algo.{before}", f"algo.{now}", 1)
    return argument


def refusal(error: Exception, primary: str = "config") -> RloptError:
    """The error for what Hydra or OmegaConf refused: one line with what to do."""
    ambiguous = re.search(r"Ambiguous value for argument '(.*?)'\n", str(error), re.DOTALL)
    override = ambiguous[1] if ambiguous else getattr(error, "override", None)
    return _unreadable(override, str(error)) if override else translate(error, primary)


def _unreadable(override: str, why: str) -> RloptError:
    """The error for an argument that Hydra's grammar does not accept, with the quotes that it would accept."""
    key, equals, value = override.partition("=")
    if not equals:
        return RloptError(f"{override}: is not a setting; want key=value")
    for quote in ('"', "'"):
        quoted = f"{key}={quote}{value.replace(quote, chr(92) + quote)}{quote}"
        if _reads_as(quoted, value):
            return RloptError(f"{override}: is not read as one value; quote the value: {shlex.quote(quoted)}")
    return RloptError(f"{override}: is not read as one value ({first_line(why)}); put it in a YAML file")


def _reads_as(override: str, value: str) -> bool:
    """Whether Hydra accepts an argument and reads this text."""
    try:
        return bool(OverridesParser.create().parse_override(override).value() == value)
    except HydraException:
        return False
