"""Tasks of reasoning-gym (github.com/open-thought/reasoning-gym): a hundred kinds of problems, made on this machine.

`data.train=reasoning_gym:chain_sum`, or with parameters of the task `reasoning_gym:chain_sum,min_terms=2,max_terms=3`. The
reward that belongs to it is `rlopt.rewards:reasoning_gym`, which asks the task's own scorer. `rlopt[reasoning]` installs it.
"""

import ast
from typing import Any

from rlopt.core.errors import RloptError

PREFIX = "reasoning_gym:"

Problem = tuple[str, str, str, dict[str, Any]]
"""Name, question, answer (empty where a task has none to show), and columns for the reward."""


def problems(where: str, name: str, seed: int, size: int, held_out: bool) -> list[Problem]:
    """`size` problems of the task that `name` names after the prefix. Held-out ones are drawn with another seed.

    Raises:
        RloptError: reasoning-gym is not installed, has no such task, or the task has no such parameter.
    """
    task, *said = name.removeprefix(PREFIX).split(",")
    try:
        import reasoning_gym
    except ImportError as error:
        raise RloptError(f"{where}: needs reasoning-gym ({error}); pip install 'rlopt[reasoning]'") from None
    known = sorted(reasoning_gym.factory.DATASETS)
    if task not in known:
        raise RloptError(f"{where}: reasoning-gym has no task {task!r}; one of {', '.join(known)}")
    parameters = dict(_parameter(where, one) for one in said)
    try:
        made = reasoning_gym.create_dataset(task, seed=seed + (2**31 if held_out else 0), size=size, **parameters)
        entries = [made[number] for number in range(size)]
    except Exception as error:  # each task checks its parameters in its own way
        why = " ".join(str(error).split()) or type(error).__name__
        raise RloptError(f"{where}: the task cannot be made ({why[:200]}); check its parameters") from None
    return [
        (f"{task}:{number}", entry["question"], str(entry["answer"] or ""), {"reasoning_gym": {"task": task, "entry": entry}})
        for number, entry in enumerate(entries, 1)
    ]


def _parameter(where: str, said: str) -> tuple[str, Any]:
    name, _, value = said.partition("=")
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        way_out = "write 'data.train=\"reasoning_gym:TASK,min_terms=2\"'"
        raise RloptError(f"{where}: {said!r} is not a parameter and its value; {way_out}") from None
