"""What a person sees of a run: a progress bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_STEPS = 50  # steps between two lines where there is no terminal


class Display:
    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, name: str, step: int, steps: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, completed=step, total=steps, note="")

    def step(self, step: int, note: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step, note=note)
        if not self._console.is_terminal and step % QUIET_STEPS == 0:
            self._console.print(f"step {step}  {note}", markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
