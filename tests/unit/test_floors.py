"""The order of the packages: imports point down, without circles, and heavy libraries have one entrance each."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlopt"
ORDER = (
    "commands",
    "run",
    "step_pairs",
    "evaluation",
    "orchestrator",
    "rollout",
    "learner",
    "diagnosis",
    "weight_sync",
    "objectives",
    "tracking",
    "models",
    "cluster",
    "environments",
    "data",
    "rewards",
    "config",
    "core",
)
"""From top to bottom. The commands are the files beside the packages."""
ENTRANCES = {
    "ray": {"cluster.actors", "cluster.ray_cluster", "cluster.own_ray", "cluster.ray_jobs", "weight_sync.engine_client"},
    "deepspeed": {"learner.deepspeed_engine"},
    "vllm": {
        "rollout.worker",
        "rollout.vllm_engine",
        "rollout.weight_receiver",
        "rollout.cpu_fork",
        "rollout.cpu_sampler",
        "rollout.scheduler",
        "rollout.tool_calls",
        "weight_sync.backends",
        "weight_sync.sender",
        "weight_sync.gpu_receivers",
        "weight_sync.shm_receiver",
    },
    "wandb": {"tracking.loggers"},
    "datasets": {"data.readers", "run.peer"},
    "trl": {"run.peer"},
    "pyarrow": {"data.readers"},
    "peft": {"models.lora"},
    "hydra": {"config.cli", "config.compose"},
    "reasoning_gym": {"data.reasoning", "rewards.reasoning"},
}
LIGHT = {
    "torch",
    "numpy",
    "psutil",
    "rlopt",
    "pydantic",
    "omegaconf",
    "hydra",
    "math_verify",
    "sympy",
    "rich",
    "jaxtyping",
    "reasoning_gym",
} | set(sys.stdlib_module_names)
"""What packages may import that hold no worker, file format or logger."""
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "wandb", "datasets", "matplotlib")


@cache
def files() -> dict[str, Path]:
    names = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in names.items() if name != "__init__"}


def package(module: str) -> str:
    first, dot, _ = module.partition(".")
    return first if dot or first in ORDER else "commands"


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if name.removeprefix("rlopt.") in files()} or {str(node.module)}
    return found


def of_rlopt(path: Path) -> set[str]:
    return {name.removeprefix("rlopt.") for name in imports(path) if name.startswith("rlopt.")}


@pytest.mark.parametrize("module", files())
def test_a_package_imports_from_lower_packages_only(module: str) -> None:
    mine = package(module)
    if module == "objectives.__main__":
        mine = "commands"
    for other in of_rlopt(files()[module]):
        assert package(other) in ORDER[ORDER.index(mine) :], f"{module} imports {other}"
        assert mine == "commands" or "." in other or other == "objectives", f"{module} imports the command {other}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    edges = {name: of_rlopt(path) & files().keys() for name, path in files().items()}
    while leaves := [name for name, others in edges.items() if not others & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges, {name: sorted(others & edges.keys()) for name, others in edges.items()}


@pytest.mark.parametrize("module", files())
def test_heavy_libraries_have_one_entrance_each(module: str) -> None:
    for name in imports(files()[module]):
        library = name.split(".")[0]
        assert module in ENTRANCES.get(library, {module}), f"{module} imports {library}"


@pytest.mark.parametrize("module", [name for name in files() if package(name) in ("core", "config", "rewards", "orchestrator")])
def test_records_config_rewards_and_the_loop_need_only_light_libraries(module: str) -> None:
    assert {name.split(".")[0] for name in imports(files()[module])} <= LIGHT


def test_every_package_says_in_a_sentence_what_it_is_for() -> None:
    for name in ORDER[1:]:
        assert ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())), name


def loaded_by(code: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has loaded after some code."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(said.stdout.splitlines()[-1].split())


def test_importing_rlopt_loads_nothing_heavy() -> None:
    assert loaded_by("import rlopt") == set()


def test_the_reward_processes_load_nothing_heavy() -> None:
    assert loaded_by("import rlopt.rewards.pool") == set()


@pytest.mark.parametrize(
    "command",
    ["train", "bench", "evaluate", "export", "submit", "pairs", "engines", "doctor", "report", "reproduce", "objectives"],
)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    ask = f"import runpy, sys; sys.argv = ['{command}', '--help']"
    assert loaded_by(f"{ask}\ntry: runpy.run_module('rlopt.{command}', run_name='__main__')\nexcept SystemExit: pass") == set()


LIMITS = {"objectives.conformance": 320}
"""Lines of a file where it may have more than 300: the kit of checks."""


@pytest.mark.parametrize("module", files())
def test_files_and_functions_are_short(module: str) -> None:
    text = files()[module].read_text()
    assert len(text.splitlines()) <= LIMITS.get(module, 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


FEW = {"rewards.notation._character": "characters", "rewards.reasoning._scorer": "tasks", "models.compiled._fused": "functions"}
"""What a function is asked for whose answers are all kept, where that is something of which there are few."""


def test_answers_are_kept_without_a_limit_only_where_there_are_few() -> None:
    """A process lives as long as a run: what models write, kept once for each text, would fill its memory."""
    found = set()
    for module, path in files().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.args.args:
                marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                if any(mark.rpartition(".")[2] in ("cache", "lru_cache(None)", "lru_cache(maxsize=None)") for mark in marks):
                    found.add(f"{module}.{node.name}")
    assert found == FEW.keys()
