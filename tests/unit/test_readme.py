"""The README says what is there: every file in its map, every metric in its table."""

from pathlib import Path

from rlopt.tracking.metrics import table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_metrics_table_is_the_one_in_the_code() -> None:
    assert table() in README


def test_the_file_map_names_every_module_once() -> None:
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "rlopt").rglob("*.py") if path.name != "__init__.py"]
    text = (ROOT / "rlopt" / "README.md").read_text()
    named = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `rlopt/")]
    assert sorted(named) == sorted(modules)
