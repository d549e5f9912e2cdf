"""What the engine does, in numbers."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, fields

PACE_S = 60.0  # seconds that the present pace is taken from
LONGEST_WAIT_S = 300  # that anybody is told to wait


class Pace:
    """How many requests end a second, of late."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ends: deque[float] = deque(maxlen=1000)
        self._guard = threading.Lock()

    def ended(self) -> None:
        with self._guard:
            self._ends.append(time.monotonic())

    def seconds_for(self, count: int) -> int:
        """Whole seconds in which so many will end, at least 1; the longest that may be said where none has of late."""
        now = time.monotonic()
        with self._guard:
            while self._ends and self._ends[0] < now - PACE_S:
                self._ends.popleft()
            ends = len(self._ends)
            full = ends == self._ends.maxlen  # then the oldest ones are known no more
            since = self._ends[0] if full else max(self._began, now - PACE_S)
        if not ends:
            return LONGEST_WAIT_S
        return max(1, min(LONGEST_WAIT_S, math.ceil(count * (now - since) / ends)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The engine at one moment, and what it has done since it started."""

    running: int  # requests holding pages
    waiting: int  # requests submitted or preempted
    free_pages: int  # that can be had, those of the prefix tree that nobody holds included
    num_pages: int
    prefix_pages: int  # in the prefix tree
    restarts: int  # of the engine after a failure; all that follows goes on counting
    generated_tokens: int
    prefilled_tokens: int  # prompt tokens computed; those computed again after a preemption count again
    steps: int
    drafted_tokens: int  # proposed before the model was asked
    foreseen_tokens: int  # and said by it: each spared a step
    preemptions: int
    failed_steps: int
    prefix_hits: int  # admissions that found the beginning of their prompt
    queried_tokens: int  # of prompts admitted; those admitted again after a preemption count again
    reused_tokens: int  # that they did not compute; those found again after a preemption count again
    evicted_pages: int  # of the prefix tree
    spilled_bytes: int  # of them, written to disk
    restored_bytes: int  # and read from there


COUNTERS = tuple(each.name for each in fields(Statistics))[6:]  # those that a loop counts
