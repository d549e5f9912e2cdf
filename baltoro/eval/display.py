"""What stands beside the bar of a run that asks an endpoint many things."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from baltoro.bar import Bar
from baltoro.eval.budget import Budget
from baltoro.server.prices import shown


class Display(Bar):
    """One line a kind of work, with what has been spent so far."""

    def __init__(self, budget: Budget) -> None:
        columns = [TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[spent]}")]  # fmt: skip
        super().__init__(*columns, transient=True)
        self._budget = budget

    def begin(self, name: str, total: int) -> TaskID:
        return self._bar.add_task(name, total=total, spent="")

    def advance(self, task: TaskID) -> None:
        used, cost = self._budget.used, self._budget.cost
        tokens = f"{used.prompt_tokens + used.completion_tokens:,} tokens"
        self._bar.update(task, advance=1, spent=tokens if cost is None else f"{tokens}, {shown(cost)}")
