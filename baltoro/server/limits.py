"""How much of something may go through in any minute."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

MINUTE_S = 60.0


class Window:
    """A sliding log: what was added and what is held never pass `limit` in any `seconds`, to the unit.

    What a request may still need is held while it runs, and added as what it really was when it ends. Times are of a
    clock that only runs forward. Belongs to one thread.
    """

    def __init__(self, limit: int, seconds: float = MINUTE_S) -> None:
        self.limit = limit  # may be changed at any time
        self.held = 0
        self._seconds = seconds
        self._log: deque[tuple[float, int]] = deque()
        self._added = 0  # of what stands in the log

    def room(self, now: float) -> int:
        """What may still come; below 0 where the limit was lowered, or an answer became longer than was held for it."""
        while self._log and self._log[0][0] <= now - self._seconds:
            self._added -= self._log.popleft()[1]
        return self.limit - self.held - self._added

    def add(self, amount: int, now: float) -> None:
        if amount:
            self._log.append((now, amount))
            self._added += amount

    def wait_s(self, amount: int, now: float) -> int:
        """Whole seconds, 1 to `seconds`, until `amount` fits if nothing else comes; what is held may stay longer."""
        missing = amount - self.room(now)
        for then, freed in self._log:
            missing -= freed
            if missing <= 0:
                return max(1, math.ceil(then + self._seconds - now))
        return 1 if not self._log else math.ceil(self._seconds)

    def reset_s(self, now: float) -> float:
        """Seconds until everything that was added is forgotten."""
        self.room(now)
        return max(0.0, self._log[-1][0] + self._seconds - now) if self._log else 0.0


class Standing(NamedTuple):
    """How far a limit is used up."""

    name: str  # requests or tokens
    limit: int  # a minute
    remaining: int
    reset_s: float  # seconds until all of it is there again
