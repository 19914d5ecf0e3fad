"""`python -m rlopt.objectives check NAME|module:Class [field=value ...]`: test an objective. `list` names them all."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from rlopt.config.compose import algorithms, read
from rlopt.core.errors import RloptError, first_line

if TYPE_CHECKING:
    from rlopt.objectives.conformance import Finding
    from rlopt.objectives.core import Objective


def build(name: str, settings: list[str]) -> "Objective":
    """The objective that `name` (an algorithm, or `module:Class`) and `field=value` settings describe."""
    from rlopt.objectives.registry import load_class, objective_of

    path, options = objective_of(name) if ":" not in name else (name, {})
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise RloptError(f"{setting}: want field=value")
        try:
            options[field] = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise RloptError(f"{setting}: not a value ({first_line(error)})") from None
    return read(load_class(path), options, "")  # type: ignore[no-any-return]


def table(name: str, objective: "Objective", findings: "list[Finding]") -> Table:
    """What was found, for people."""
    passed = sum(finding.passed for finding in findings)
    rows = Table(title=f"{name}: {passed} of {len(findings)} checks passed\n{objective}", title_justify="left")
    rows.add_column("what must hold")
    rows.add_column("")
    rows.add_column("evidence", overflow="fold")
    for finding in findings:
        rows.add_row(finding.check, "[green]ok[/]" if finding.passed else "[red]FAILED[/]", finding.evidence)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.objectives", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the algorithms")
    checking = commands.add_parser("check", help="try an objective on everything that an objective must do")
    checking.add_argument("name", metavar="NAME|module:Class", help="an algorithm, as +algo= takes it, or a class of your own")
    checking.add_argument("settings", nargs="*", metavar="field=value", help="fields of the objective")
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(algorithms()))
        return
    sys.path.insert(0, os.getcwd())  # a class of the user's own stands where they are
    try:
        objective = build(arguments.name, arguments.settings)
    except RloptError as error:
        sys.exit(f"error: {error}")
    from rlopt.objectives.conformance import check

    findings = check(objective)
    Console().print(table(arguments.name, objective, findings))
    sys.exit(0 if all(finding.passed for finding in findings) else 1)


if __name__ == "__main__":
    main()
