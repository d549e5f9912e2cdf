"""What callers want, on its way from their threads to the engine's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from baltoro.engine.request import Request
from baltoro.engine.sequence import Sequence
from baltoro.errors import EngineError, RequestError


class Taken(NamedTuple):
    """What has been asked for since the last step."""

    arrived: list[Sequence]
    cancelled: list[Sequence]


class Orders:
    """Who is under way, who came, who goes. As a context manager it keeps the engine from seeing a part of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards everything here
        self._live: dict[Request, Sequence] = {}
        self._arrived: list[Sequence] = []
        self._cancelled: list[Request] = []
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
                raise EngineError("the engine has stopped", hint="restart the server")
            if request in self._live:
                raise RequestError(f"request {request.id} is already running", hint="make a new Request for each run")
            self._live[request] = sequence
            self._arrived.append(sequence)
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
    def num_arrived(self) -> int:
        """Submitted, and not seen by the engine yet."""
        return len(self._arrived)

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
            return Taken(arrived, cancelled)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Sleep until `ready`, unless there is an order."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._cancelled or self._abandoned or ready())

    def forget(self, request: Request) -> None:
        """It ended."""
        with self._changed:
            del self._live[request]

    def end(self) -> list[Sequence]:
        """Take nothing new; returns who was under way, all forgotten."""
        with self._changed:
            self._closed = True
            left = list(self._live.values())
            self._live.clear()
            self._arrived.clear()
            return left
