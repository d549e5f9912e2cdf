"""What an episode may spend, and what it has spent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from baltoro.chat.messages import Usage
from baltoro.errors import BaltoroError

Limit = Literal["steps", "tokens", "seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Looked at before each call of the model. None: without limit."""

    steps: int | None = 50  # answers of the model
    tokens: int | None = None  # of prompts, less what a cache had, and of answers
    seconds: float | None = None  # of wall time, tools included

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BaltoroError(f"a budget of {value} {name}", hint="give more than 0, or none for no limit")


class Spent:
    """Belongs to one episode; the clock runs from its making."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._began_s = time.monotonic()
        self.steps = 0
        self.tokens = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def add(self, usage: Usage) -> None:
        """One answer."""
        self.steps += 1
        self.tokens += usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens

    def exhausted(self) -> Limit | None:
        """Which limit is reached."""
        budget = self._budget
        if budget.steps is not None and self.steps >= budget.steps:
            return "steps"
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return "tokens"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return "seconds"
        return None

    @property
    def tokens_left(self) -> int | None:
        """An answer may be no longer; None: without limit."""
        return None if self._budget.tokens is None else max(0, self._budget.tokens - self.tokens)

    @property
    def seconds_left(self) -> float | None:
        return None if self._budget.seconds is None else max(0.0, self._budget.seconds - self.seconds)
