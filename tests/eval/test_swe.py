from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from baltoro.agent.sandbox import Sandbox, Unconfined
from baltoro.agent.workspace import Workspace
from baltoro.errors import BaltoroError
from baltoro.eval import swe
from baltoro.scripted import ScriptedLLM
from tests.agent.script import said

TASKS = swe.tasks()


def unconfined(workspace: Workspace) -> Sandbox:
    """Our own tests' commands: they run as everything here does, where bubblewrap does not work."""
    return Unconfined(workspace, lambda _: True)


def passes(folder: Path) -> bool:
    command = [sys.executable, "-B", *swe.CHECK.split()[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_s_tests_fail_before_its_reference_and_pass_after(task: swe.Task, tmp_path: Path) -> None:
    task.lay_out(tmp_path)
    assert not passes(tmp_path)
    for edit in task.reference:
        text = (tmp_path / edit.path).read_text()
        assert text.count(edit.old) == 1
        (tmp_path / edit.path).write_text(text.replace(edit.old, edit.new))
    assert passes(tmp_path)
    assert all(edit.new not in task.prompt for edit in task.reference)


def knowing(task: swe.Task) -> list[str]:
    """What a model says that knows the answer."""
    edits = [("edit", {"path": edit.path, "old": edit.old, "new": edit.new}) for edit in task.reference]
    return [
        said("I look.", ("read", {"path": next(iter(task.files))})),
        said("", *edits, first=1),
        said("", ("shell", {"command": swe.CHECK}), first=9),
        "It works now.",
    ]


def test_a_model_that_knows_solves_all_of_them_and_one_that_does_not_none() -> None:
    model = ScriptedLLM([answer for task in TASKS for answer in knowing(task)])
    records = swe.run(model, TASKS, sandbox=unconfined)
    assert [(each.task, each.solved, each.end, each.steps) for each in records] == [
        (task.name, True, "done", 4) for task in TASKS
    ]
    records = swe.run(ScriptedLLM(["It works, trust me."] * 9), TASKS[:2], sandbox=unconfined)
    assert [each.solved for each in records] == [False, False]
    assert "FAILED" in records[0].reason
    assert "0.0%" in swe.table(records)


def test_tests_that_were_changed_do_not_help() -> None:
    cheat = "import pathlib; [p.write_text('') for p in pathlib.Path('tests').glob('test_*.py')]"
    model = ScriptedLLM(
        [
            said("", ("python", {"code": cheat})),
            said("", ("write", {"path": "tests/test_x.py", "content": ""}), first=1),
            "done",
        ]
    )
    assert not swe.run(model, TASKS[:1], sandbox=unconfined)[0].solved


def test_of_several_attempts_the_one_that_passes_counts() -> None:
    class Split:
        """The first conversation gives up, the others know."""

        name = "split"

        def __init__(self) -> None:
            self._models: dict[int, ScriptedLLM] = {}

        def complete(self, request):  # type: ignore[no-untyped-def]
            number = request.seed // 1000
            script = knowing(TASKS[0]) if number == 2 else ["no idea"]
            return self._models.setdefault(number, ScriptedLLM(script)).complete(request)

    from baltoro.agent.loop import Settings

    record = swe.run(Split(), TASKS[:1], attempts=3, settings=Settings(seed=0), sandbox=unconfined)[0]
    assert (record.solved, record.attempts, record.steps) == (True, 3, 6)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(BaltoroError, match="no task nonsense"):
        swe.tasks(["nonsense"])
