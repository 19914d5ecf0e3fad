"""`python -m rlopt.doctor RUN`: what is wrong with a run, in plain words first, with the numbers below and remedies by key.

It reads `metrics.jsonl` and, if the run kept one (`run.record=true`), `experience.jsonl.gz`, by which alone the causes of a gap
between engine and learner can be distinguished. A finding is a fault, a warning, unknown (too little data) or fine. It
exits with 1 on a fault.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError

if TYPE_CHECKING:
    from rlopt.diagnosis.checks import Finding
    from rlopt.diagnosis.evidence import Evidence

COLORS = {"fault": "red", "warning": "yellow", "unknown": "dim", "fine": "green"}


def verdict(findings: "list[Finding]") -> str:
    """One sentence for the whole run."""
    faults, warnings = ([f.verdict for f in findings if f.level == level] for level in ("fault", "warning"))
    if faults:
        return f"Something is wrong: {'; '.join(faults)}."
    if warnings:
        return f"Nothing is broken, but: {'; '.join(warnings)}."
    return "Healthy: nothing found."


def show(run: Path, evidence: "Evidence", findings: "list[Finding]", console: Console) -> None:
    """Print the verdict, every finding, and the gap by lag and position."""
    console.print(f"{run}: {len(evidence.rows)} steps. {verdict(findings)}\n", highlight=False, soft_wrap=True)
    for f in findings:
        console.print(f"[{COLORS[f.level]}]{f.level:8}[/]{f.name}: {f.verdict}", highlight=False, soft_wrap=True)
        if f.evidence:
            console.print(f"        [dim]{f.evidence}[/]", highlight=False, soft_wrap=True)
        if f.remedy and f.level != "fine":
            console.print(f"        what to do: {f.remedy}", highlight=False, soft_wrap=True)
    console.print()
    if evidence.record:
        console.print(evidence.record, highlight=False, soft_wrap=True)
    if evidence.tokens is None:
        return
    from rlopt.diagnosis.evidence import bins

    for by in ("lag", "position"):
        table = Table(title=f"policy - behavior by {by} (nats per token)", title_justify="left")
        for column in (by, "tokens", "mean", "mean of size"):
            table.add_column(column, justify="right")
        for label, count, mean, size in bins(evidence.tokens, by):  # type: ignore[arg-type]
            table.add_row(label, str(count), f"{mean:+.2e}", f"{size:.2e}")
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.doctor", description=__doc__)
    parser.add_argument("run", type=at_home, metavar="RUN", help="the folder of a run")
    run: Path = parser.parse_args().run
    metrics = run / "metrics.jsonl"
    if not metrics.is_file() or not metrics.stat().st_size:
        sys.exit(f"error: {run}: holds no metrics.jsonl with a step; give the folder of a run")
    from rlopt.diagnosis.checks import diagnose  # heavy: only once there is something to read
    from rlopt.diagnosis.evidence import read

    try:
        evidence = read(run)
    except RloptError as error:
        sys.exit(f"error: {error}")
    findings = diagnose(evidence)
    show(run, evidence, findings, Console())
    sys.exit(1 if any(finding.level == "fault" for finding in findings) else 0)


if __name__ == "__main__":
    main()
