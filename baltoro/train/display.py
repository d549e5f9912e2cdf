"""What a person sees of a run: a progress bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from baltoro.bar import Bar

QUIET_STEPS = 50  # steps between two lines where there is no terminal


class Display(Bar):
    def __init__(self, *, quiet_steps: int = QUIET_STEPS) -> None:
        self._quiet_steps = quiet_steps
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
            transient=False,
        )  # fmt: skip
        self._task: TaskID | None = None

    def phase(self, name: str, step: int, steps: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, completed=step, total=steps, note="")

    def step(self, step: int, note: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step, note=note)
        if not self.on_terminal and step % self._quiet_steps == 0:
            self.say(f"step {step}  {note}")
