"""What callers want, on its way from their threads to the engine's."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from baltoro.engine.request import Request
from baltoro.engine.sequence import Sequence
from baltoro.engine.statistics import Pace
from baltoro.errors import EngineError, QueueFull, RequestError


class Taken(NamedTuple):
    """What has been asked for since the last step."""

    arrived: list[Sequence]
    cancelled: list[Sequence]
    late: list[Sequence]  # their deadline has passed


class Orders:
    """Who is under way, who came, who goes. As a context manager it keeps the engine from seeing a part of them."""

    def __init__(self, max_waiting: int | None = None) -> None:
        self.max_waiting = max_waiting
        self.pace = Pace()  # of ends
        self._changed = threading.Condition()  # guards everything here
        self._live: dict[Request, Sequence] = {}
        self._arrived: list[Sequence] = []
        self._cancelled: list[Request] = []
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap; some of them have ended
        self._serial = itertools.count()
        self.num_running = 0  # of those under way, as the engine's thread says
        self._refusal: str | None = None  # why nothing is taken just now
        self._closed = False  # nothing new is taken
        self._abandoned = False  # and what is under way ends at once

    def __enter__(self) -> None:
        self._changed.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._changed.release()

    # ── what callers do ──────────────────────────────────────────────────────────────────────────

    def submit(self, sequence: Sequence) -> None:
        request = sequence.request
        with self._changed:
            if self._closed:
                raise EngineError(self._refusal or "the engine has stopped", hint="restart the server")
            if self._refusal is not None:
                raise EngineError(self._refusal, hint="try again in a moment")
            if request in self._live:
                raise RequestError(f"request {request.id} is already running", hint="make a new Request for each run")
            self._check_room()
            self._live[request] = sequence
            self._arrived.append(sequence)
            if request.deadline is not None:
                heapq.heappush(self._deadlines, (request.deadline, next(self._serial), sequence))
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        with self._changed:
            self._cancelled.append(request)
            self._changed.notify()

    def close(self, *, abandon: bool) -> None:
        """Take nothing new; with `abandon` those under way end before the next step."""
        with self._changed:
            self._closed = True
            self._abandoned |= abandon
            self._changed.notify()

    def wake(self) -> None:
        """What `wait` waits for has changed."""
        with self._changed:
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def num_live(self) -> int:
        """Submitted, and not ended."""
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        """Submitted, and not running."""
        return max(0, len(self._live) - self.num_running)

    def _check_room(self) -> None:
        waiting = self.num_waiting
        if self.max_waiting is None or waiting < self.max_waiting:
            return
        seconds = self.pace.seconds_for(waiting)
        raise QueueFull(
            f"{waiting} requests wait already, expected fewer than {self.max_waiting}",
            hint=f"try again in {seconds} s, or serve with a longer queue",
            retry_after_s=seconds,
        )

    # ── what the engine's thread does ────────────────────────────────────────────────────────────

    def take(self, asleep: Callable[[], None]) -> Taken | None:
        """Sleep until someone is there; None when nobody is left and nobody will come.

        asleep: told before every sleep
        """
        with self._changed:
            while not (self._live or self._closed):
                asleep()
                self._cancelled.clear()
                self._changed.wait()
            if self._abandoned or not self._live:
                return None
            arrived, self._arrived = self._arrived, []
            cancelled = [self._live[request] for request in dict.fromkeys(self._cancelled) if request in self._live]
            self._cancelled.clear()
            return Taken(arrived, cancelled, [each for each in self._due() if each not in cancelled])

    def wait(self, ready: Callable[[], bool]) -> None:
        """Sleep until `ready`, unless there is an order, or somebody's deadline has passed."""
        with self._changed:
            left = self._deadlines[0][0] - time.monotonic() if self._deadlines else None
            if left is None or left > 0.0:
                self._changed.wait_for(lambda: self._arrived or self._cancelled or self._abandoned or ready(), left)

    def _due(self) -> list[Sequence]:
        """Those under way whose deadline has passed, each once."""
        now, late = time.monotonic(), list[Sequence]()
        while self._deadlines and self._deadlines[0][0] <= now:
            sequence = heapq.heappop(self._deadlines)[2]
            if self._live.get(sequence.request) is sequence:
                late.append(sequence)
        return late

    def forget(self, request: Request) -> None:
        """It ended."""
        with self._changed:
            self._live.pop(request, None)  # none after `end`
            if len(self._deadlines) > 2 * len(self._live) + 16:  # most of these have ended
                self._deadlines = [each for each in self._deadlines if each[2].request in self._live]
                heapq.heapify(self._deadlines)
        self.pace.ended()

    @property
    def ended(self) -> bool:
        """Whether all were forgotten by `end`: nobody listens."""
        return self._refusal is not None

    def end(self, refusal: str) -> list[Sequence]:
        """Take nothing new until `reopen`; returns who was under way, all forgotten."""
        with self._changed:
            self._refusal = refusal
            left = list(self._live.values())
            self._live.clear()
            self._arrived.clear()
            self._deadlines.clear()
            self.num_running = 0
            return left

    def reopen(self) -> None:
        with self._changed:
            self._refusal = None

    def wait_closed(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)
