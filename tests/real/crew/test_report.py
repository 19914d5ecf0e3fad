"""The report of real runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Runs = Callable[[str], Path]


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlopt.report", *map(str, arguments)], capture_output=True, text=True)


def test_runs_of_several_algorithms_become_one_figure_and_one_page(run: Runs, tmp_path: Path) -> None:
    done = report(run("grpo"), run("rec_oneside_nois"), run("rec_oneside_nois"), "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000
    svg = (tmp_path / "page.svg").read_text()
    assert svg.count("<svg") == 1
    page = (tmp_path / "page.html").read_text()
    assert "data:image/png;base64," in page
    assert "<td>rec_oneside_nois</td><td>2</td>" in page
    assert "http" not in page


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    done = report(tmp_path, "--out", tmp_path / "page.html")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}: not a run (no config.yaml and metrics.jsonl); give the folders of runs\n"
