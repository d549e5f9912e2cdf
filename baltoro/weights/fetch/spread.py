"""One function over many items on several threads, which Ctrl-C leaves at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

TICK_S = 0.2  # between two looks of the main thread

A = TypeVar("A")
B = TypeVar("B")


def spread(
    function: Callable[[A], B], items: Sequence[A], jobs: int, tick: Callable[[], object] = lambda: None
) -> list[B]:
    """The results in the order of `items`; the first exception is raised. `tick` is called while it runs.

    Daemon threads, unlike those of concurrent.futures: nobody waits for one that hangs in a silent server's answer.
    """
    results: dict[int, B] = {}
    errors: list[BaseException] = []
    waiting = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                index = next(waiting, None)
            if index is None:
                return
            try:
                results[index] = function(items[index])
            except BaseException as error:  # raised again in the main thread
                errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(items)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive() and not errors:
            worker.join(TICK_S)
            tick()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
