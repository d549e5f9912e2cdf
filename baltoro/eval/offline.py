"""The tasks that run here with files at hand and nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baltoro.errors import BaltoroError
from baltoro.eval.task import Task
from baltoro.eval.tasks import choices, functions, ifeval, maths, programs, tau2

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        maths.GSM8K, maths.AIME24, choices.MMLU, choices.BBH, ifeval.IFEVAL, functions.BFCL, functions.ACEBENCH,
        tau2.TAU2_RETAIL,
        programs.HUMANEVAL, *programs.HUMANEVAL_X, programs.MBPP,
    )
}  # fmt: skip


def chosen(names: Sequence[str]) -> tuple[list[Task], list[str]]:
    """Tasks by name, all where none is named; and, in words, those of all that this machine cannot run."""
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise BaltoroError(f"no task is called {', '.join(unknown)}", hint=f"there are {', '.join(TASKS)}")
    wanted = [TASKS[name] for name in dict.fromkeys(names)] if names else list(TASKS.values())
    lacking = {task.name: why for task in wanted if (why := task.needs())}
    if names and lacking:
        raise BaltoroError(f"{next(iter(lacking))}: {next(iter(lacking.values()))}", hint="install it, or leave it out")
    return [task for task in wanted if task.name not in lacking], [f"{name}: {why}" for name, why in lacking.items()]
