"""The pages say what is there: files, links, commands, keys, metrics and algorithms."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from builders import composed
from test_floors import ORDER

from rlopt.config.compose import algorithms
from rlopt.tracking.metrics import table

ROOT = Path(__file__).parents[2]
FOLDERS = ("rlopt", "conf", "tests", "examples", "docker")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def file_map() -> str:
    """The tables of all modules with the first sentence of their docstrings, package by package."""
    parts = []
    for package in ORDER:
        folder = ROOT / "rlopt" / ("" if package == "commands" else package)
        head = "The commands, `python -m rlopt.NAME`."
        if package != "commands":
            head = f"**`{package}/`** " + first_paragraph(folder / "__init__.py")
        rows = [
            f"| [`{path.name}`]({path.relative_to(ROOT / 'rlopt')}) | {first_paragraph(path).rstrip('.')} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        parts.append("\n".join([head, "", "| file | what it is |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def first_paragraph(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(said.split("\n\n")[0].split())


def test_the_metrics_table_is_the_one_in_the_code() -> None:
    assert table() in text("rlopt/tracking/README.md")


def test_the_file_map_is_made_of_the_modules_and_their_docstrings() -> None:
    assert file_map() in text("rlopt/README.md")


def test_the_page_on_configuration_names_every_algorithm_once() -> None:
    rows = [line for line in text("conf/README.md").splitlines() if line.startswith(("| groups", "| preference", "| answers"))]
    assert sorted(re.findall(r"`([a-z0-9_]+)`", "".join(rows))) == algorithms()
    assert f"| {len(algorithms())} algorithms |" in text("README.md")


def test_the_first_page_can_be_read_in_one_sitting() -> None:
    assert len(text("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_ours_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:rlopt|conf|tests|examples|docker)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def commands(module: str) -> list[list[str]]:
    """The arguments of every command line of a module on all pages, without comments."""
    found = []
    for page in PAGES:
        joined = page.read_text().replace("\\\n", " ")
        lines = re.findall(rf"^ +python -m rlopt\.{module}( .*)$", joined, re.M)
        found += [shlex.split(line, comments=True) for line in lines]
    return found


def test_every_training_command_composes() -> None:
    lines = commands("train")
    assert len(lines) >= 10
    for line in lines:
        plain = [argument for argument in line if argument != "--multirun"]
        if "--multirun" in line:
            plain = [re.sub(r"=([^=,]+),.*$", r"=\1", argument) for argument in plain]
        composed("config", *plain)


def test_every_evaluation_and_pairs_command_composes() -> None:
    assert commands("evaluate")
    assert commands("pairs")
    for name in ("evaluate", "pairs"):
        for line in commands(name):
            composed(name, *(re.sub(r"^run=", "evaluate.run=", argument) for argument in line if argument != "..."))


def test_every_key_that_the_pages_name_is_there() -> None:
    known, evaluate, pairs = composed("config", "+algo=grpo"), composed("evaluate"), composed("pairs")
    sections = "|".join(section for section in known if section != "algo")
    for page in PAGES:
        if page.parent.name == "moving":  # has keys of other frameworks
            continue
        for key in re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)[`=]", page.read_text()):
            section, _, rest = key.partition(".")
            node = known[section]
            for part in rest.split("."):
                assert part in node, f"{page.name}: {key}"
                node = node[part]
        for section, config in (("evaluate", evaluate), ("pairs", pairs)):
            for key in re.findall(rf"`{section}\.([a-z_]+)[`=]", page.read_text()):
                assert key in ("yaml", "py") or key in config[section], f"{page.name}: {section}.{key}"


def test_every_target_of_make_that_the_pages_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.M))
    for page in PAGES:
        for line in re.findall(r"^ +make ([a-z -]+)", page.read_text(), re.M):
            assert set(line.split()) <= targets, line


@pytest.mark.parametrize(("section", "most"), [("One prompt", 10), ("One gradient", 8), ("One key", 3)])
def test_one_thing_is_followed_through_few_files(section: str, most: int) -> None:
    told = text("rlopt/README.md").split(f"## {section}\n")[1].split("\n## ")[0]
    assert len(set(re.findall(r"\]\(([^)]+)\)", told))) <= most


SCRIPTS = [*sorted((ROOT / "examples").rglob("*.py")), *(ROOT / "tests/faults" / name for name in ("matrix.py", "soak.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_script_says_what_it_is_for_and_reads_its_arguments_by_name(script: Path) -> None:
    source = script.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert "sys.argv" not in source  # argparse answers --help, and says in one line what is missing
