"""The queue: who waits for a place among the running, in the order in which they are to get one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from baltoro.engine.sequence import Sequence


class Waiting:
    """Sequences by `Sequence.order`. Adding, looking at the first and taking one out cost O(log n) at most.

    One that is taken out from the middle leaves its entry in the heap until that comes up, or half of them are such.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._here: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._here)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._here

    def __iter__(self) -> Iterator[Sequence]:
        """In order."""
        return iter(sorted(self._here, key=lambda sequence: sequence.order))

    def add(self, sequence: Sequence) -> None:
        assert sequence not in self._here
        self._here.add(sequence)
        heapq.heappush(self._heap, (sequence.order, sequence))

    def first(self) -> Sequence | None:
        while self._heap and self._heap[0][1] not in self._here:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        """Take out the first."""
        first = self.first()
        assert first is not None
        heapq.heappop(self._heap)
        self._here.remove(first)
        return first

    def remove(self, sequence: Sequence) -> None:
        """It ended, and never comes again."""
        self._here.remove(sequence)
        if len(self._heap) > 2 * len(self._here) + 16:
            self._heap = [entry for entry in self._heap if entry[1] in self._here]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        self._heap.clear()
        self._here.clear()
