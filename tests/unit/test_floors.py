"""The floor plan: imports point down, heavy libraries have one door, and the README keeps up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlopt"
FLOORS = (
    {"errors", "files", "signals", "garbage"},
    {"types", "config", "processes", "synonyms"},
    {
        "objectives",
        "rewards",
        "schedule",
        "batching",
        "metrics",
        "arithmetic",
        "latex",
        "notation",
        "estimates",
        "steps",
        "trial",
        "record",
        "replay",
        "diagnosis",
        "evidence",
        "engines",
        "head",
    },
    {
        "conformance",
        "boards",
        "data",
        "rows",
        "answers",
        "equality",
        "grading",
        "prompts",
        "examples",
        "experience",
        "tiny",
        "lora",
        "model",
        "weights",
        "forked",
        "checkpoint",
        "cluster",
        "tracking",
        "settings",
    },
    {"rollout", "fleet", "shm_engine", "preload", "learner"},
    {"loop", "live", "stream", "groups", "sync", "recorded", "evaluation"},
    {"jobs", "plan", "prepare", "resume", "describe", "launch", "harvest", "judge", "command"},
    {"train", "submit", "evaluate", "export", "pairs", "report", "doctor", "objectives.__main__"},
)
BELOW = {f"objectives.{name}" for name in ("core", "advantages", "ratios", "corrections", "divergence", "preferences")}
"""The shared files of the objectives; the leaves may use them."""
SAME_FLOOR = {
    ("grading", "answers"),
    ("grading", "equality"),
    ("steps", "estimates"),
    ("batching", "objectives"),
    ("trial", "objectives"),
    ("trial", "batching"),
    ("model", "tiny"),
    ("model", "lora"),
    ("examples", "data"),
    ("tracking", "boards"),
    ("examples", "rows"),
    ("examples", "prompts"),
    ("prompts", "data"),
    ("prompts", "rows"),
    ("fleet", "rollout"),
    ("experience", "data"),
    ("experience", "prompts"),
    ("checkpoint", "record"),
    ("evidence", "record"),
    ("diagnosis", "evidence"),
    ("cluster", "weights"),
    ("sync", "loop"),
    ("groups", "loop"),
    ("stream", "live"),
    ("groups", "live"),
    ("evaluation", "live"),
    ("recorded", "loop"),
    ("launch", "prepare"),
    ("export", "report"),
    ("judge", "prepare"),
    ("prepare", "plan"),
    ("prepare", "resume"),
    ("describe", "plan"),
    ("launch", "describe"),
    ("describe", "prepare"),
}
"""Pairs that stand on one floor and yet, by design, one over the other."""
DOORS = {
    "ray": {"cluster", "jobs"},
    "deepspeed": {"learner"},
    "vllm": {"rollout", "shm_engine", "weights", "forked"},
    "wandb": {"boards"},
    "datasets": {"rows"},
    "peft": {"lora"},
    "hydra": {"command"},
}
LIGHT = {"torch", "numpy", "psutil", "yaml", "rlopt"} | set(sys.stdlib_module_names)


def files() -> dict[str, Path]:
    return {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"rlopt.{alias.name}" for alias in node.names} if node.module == "rlopt" else {str(node.module)}
    return found


def floor(module: str) -> int:
    return next(i for i, rooms in reversed([*enumerate(FLOORS)]) if module in rooms or module.split(".")[0] in rooms)


@pytest.mark.parametrize("module", [name for name in files() if name != "__init__"])
def test_a_module_imports_from_lower_floors_only(module: str) -> None:
    room = module.split(".")[0]
    for name in imports(files()[module]):
        if name.startswith("rlopt."):
            other = name.removeprefix("rlopt.")
            below = floor(other) < floor(module) or (room, other.split(".")[0]) in SAME_FLOOR
            assert below or (room == "objectives" and other in BELOW), f"{module} imports {other}"


@pytest.mark.parametrize("module", [name for name in files() if name != "__init__"])
def test_heavy_libraries_have_one_door_and_the_lower_floors_need_none(module: str) -> None:
    for name in imports(files()[module]):
        library = name.split(".")[0]
        assert module.split(".")[0] in DOORS.get(library, {module.split(".")[0]}), f"{module} imports {library}"
        assert floor(module) not in (0, 1, 2, 5) or library in LIGHT, f"{module} imports {library}"


def test_importing_rlopt_loads_nothing_heavy() -> None:
    code = "import rlopt, sys; print(*sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_the_reward_processes_load_no_torch() -> None:
    code = "import rlopt.rewards, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
