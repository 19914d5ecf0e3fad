"""What the pages of examples say of published trends follows from the numbers that stand beside them."""

import csv
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CLAIMS = sorted(EXAMPLES.glob("*/claims.json"))


def test_the_margin_figure_has_claims() -> None:
    assert EXAMPLES / "step_dpo" / "claims.json" in CLAIMS


@pytest.mark.parametrize("file", CLAIMS, ids=lambda file: file.parent.name)
def test_every_claim_holds_in_as_many_seeds_as_it_says(file: Path) -> None:
    """A claim: something at a step is more than a factor times something at a step, by run `model-algorithm-seed`."""
    with (file.parent / "curves.csv").open() as lines:
        rows = {(row["run"], int(row["step"])): row for row in csv.DictReader(lines)}
    for claim in json.loads(file.read_text()):
        (left, early), (right, late) = claim["left"], claim["right"]
        model, metric, seeds = claim["model"], claim["metric"], range(1, claim["seeds"] + 1)
        ends = [
            (float(rows[f"{model}-{left}-{seed}", early][metric]), float(rows[f"{model}-{right}-{seed}", late][metric]))
            for seed in seeds
        ]
        assert sum(one > claim["factor"] * other for one, other in ends) == claim["holds"], claim["trend"]
