"""From an engine's thread to the readers on an event loop: all tokens of a step in one go.

Each time the loop is woken costs a system call, and a wake-up in the middle of a step would take the interpreter from
the thread that chooses the next token.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Of one event loop. `put` and `deliver` are for other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._held: deque[tuple[asyncio.Queue[Item], Item]] = deque()

    def put(self, queue: asyncio.Queue[Item], item: Item) -> None:
        """For `queue`, with the next delivery."""
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed: nobody reads")
        self._held.append((queue, item))

    def deliver(self) -> None:
        self.loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        while self._held:
            queue, item = self._held.popleft()
            queue.put_nowait(item)
