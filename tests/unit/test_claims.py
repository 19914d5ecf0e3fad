"""What the pages of examples say of published trends follows from the numbers that stand beside them."""

import csv
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CLAIMS = sorted(EXAMPLES.glob("*/claims.json"))


def test_both_founding_figures_have_claims() -> None:
    assert {EXAMPLES / name / "claims.json" for name in ("sync20", "step_dpo")} <= set(CLAIMS)


@pytest.mark.parametrize("file", CLAIMS, ids=lambda file: file.parent.name)
def test_every_claim_holds_in_as_many_seeds_as_it_says(file: Path) -> None:
    """A claim: in a run `left-seed` the mean of a metric over some steps is more than a factor times that of `right-seed`."""
    with (file.parent / "curves.csv").open() as lines:
        rows = list(csv.DictReader(lines))

    def mean(run: str, metric: str, first: int, last: int) -> float:
        values = [float(row[metric]) for row in rows if row["run"] == run and first <= int(row["step"]) <= last]
        return sum(values) / len(values)

    for claim in json.loads(file.read_text()):
        holds = 0
        for seed in range(1, claim["seeds"] + 1):
            sides = [[(f"{one[0]}-{seed}", *one[1:]) for one in (c["left"], c["right"])] for c in claim["all"]]
            factors = [c["factor"] for c in claim["all"]]
            holds += all(mean(*left) > factor * mean(*right) for (left, right), factor in zip(sides, factors, strict=True))
        assert holds == claim["holds"], claim["trend"]
