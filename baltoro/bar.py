"""What long work shows: a bar where stderr is a terminal, lines elsewhere. Rooms say what stands beside the bar."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class Bar:
    """Used as a context; `say` from any thread."""

    def __init__(self, *columns: ProgressColumn, transient: bool) -> None:
        """transient: gone without a trace when it is left"""
        self._console = Console(stderr=True)
        self._bar = Progress(
            *columns, console=self._console, disable=not self._console.is_terminal, transient=transient
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def on_terminal(self) -> bool:
        return self._console.is_terminal

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
