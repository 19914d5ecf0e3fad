"""A built wheel carries its configuration and works from any folder."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_an_installed_wheel_composes_its_config_from_any_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("rlopt-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # Its dependencies are those of this environment; the package itself is the wheel's.
    here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)  # all that installing a wheel without scripts does
    (site / "dependencies.pth").write_text(f"{here}\n")
    code = "import rlopt; print(rlopt.__file__)"
    where = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert str(tmp_path) in where
    line = [python, "-m", "rlopt.train", "+algo=grpo", "--cfg", "job"]
    done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "objective: rlopt.objectives.grpo:GRPO" in done.stdout
