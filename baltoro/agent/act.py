"""An agent in a workspace: file tools, shell and Python in a sandbox, and whatever else it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from baltoro.agent.budget import Budget, Spent
from baltoro.agent.commands import Commands
from baltoro.agent.episode import Episode, Recorder
from baltoro.agent.files import Files
from baltoro.agent.loop import AnyModel, Loop, Settings, Tell, ignore
from baltoro.agent.sandbox import Sandbox, opened, refuse
from baltoro.agent.tool import AgentTool
from baltoro.agent.workspace import Workspace


def act(
    model: AnyModel,
    task: str,
    workspace: Workspace | str | Path,
    *,
    sandbox: Sandbox | None = None,
    tools: Sequence[AgentTool] = (),
    settings: Settings | None = None,
    budget: Budget | None = None,
    journal: Path | None = None,
    tell: Tell = ignore,
    cancelled: Callable[[], bool] = lambda: False,
) -> Episode:
    """Do a task in a folder, and say what was done.

    sandbox: where commands run; by default bubblewrap, and where that does not work none runs.
    tools:   further ones, beside read, write, edit, search, list, shell and python.
    journal: a new file for the episode; replay.py runs it again.
    tell:    hears of every answer, call and result as it comes.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    box = sandbox or opened(place, refuse)
    budget = budget or Budget()
    spent = Spent(budget)
    commands = Commands(box, seconds_left=lambda: spent.seconds_left, cancelled=cancelled)
    return Loop(
        model=model,
        tools=[*Files(place).tools(), *commands.tools(), *tools],
        settings=settings or Settings(),
        budget=budget,
        recorder=Recorder(journal),
        tell=tell,
        cancelled=cancelled,
        facts={"workspace": str(place.root), "protected": list(place.protected), "sandbox": box.name},
        spent=spent,
    ).run(task)
