"""What a person sees of long work on files and traces: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

from baltoro.bar import Bar

QUIET_S = 15.0  # between two lines where there is no terminal
GRUMBLE_S = 30.0  # between two lines about a network that fails
WINDOW_S = 20.0  # that the rate is taken over


def size(count: float) -> str:
    """Bytes in the unit that a disk's label uses: 1,029.2 GB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


class Display(Bar):
    """Of bytes that are moved; `update` is called a few times a second."""

    def __init__(self, what: str) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[note]}", markup=False), transient=True,
        )  # fmt: skip
        self._what = what
        self._task: TaskID | None = None
        self._seen: deque[tuple[float, int]] = deque()  # (when, bytes moved until then)
        self._last_line = time.monotonic()
        self._last_grumble = -GRUMBLE_S

    def update(self, *, here: int, total: int, moved: int) -> None:
        """`here` of `total` bytes are done; `moved` came over the line in this run, which is what the rate counts."""
        now = time.monotonic()
        self._seen.append((now, moved))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (moved - before) / (now - since) if now - since > 0.5 else 0.0
        left = f", {duration((total - here) / rate)} left" if rate > 0 and here < total else ""
        note = f"{size(here)} of {size(total)}" + (f", {size(rate)}/s" if rate else "") + left
        if self._task is None:
            self._task = self._bar.add_task(self._what, total=total, note=note)
        self._bar.update(self._task, completed=here, total=total, note=note)
        if not self.on_terminal and now - self._last_line > QUIET_S:
            self._last_line = now
            self.say(f"{self._what} {note}")

    def grumble(self, text: str) -> None:
        """Eight workers lose one network: one of them may say so."""
        now = time.monotonic()
        if now - self._last_grumble >= GRUMBLE_S:
            self._last_grumble = now
            self.say(text)


class Counted(Bar):
    """Of work that is counted in parts; off a terminal it is silent."""

    def __init__(self, what: str) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn(), transient=True
        )
        self._task = self._bar.add_task(what, total=None)

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
