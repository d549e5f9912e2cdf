"""Which block of an expert leaves memory when another must come.

A policy answers and never acts: the store tells it what is used, what has come and what has gone, and asks for a
victim. Blocks that the current step needs are never victims. Blocks are of one size.

    lru          the one that was not used for longest
    lfu          the one that was used least, old uses counting less and less
    pinned-lru   those most used, in this run and those before it, stay; among the rest, as lru
    pinned-lfu   the same with lfu
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Protocol, cast

from baltoro.errors import BaltoroError, TraceError

Key = tuple[int, int]  # layer, expert
POLICIES = ("lru", "lfu", "pinned-lru", "pinned-lfu")
PINNED_SHARE = 0.75  # of the blocks that memory holds; this and the next: docs/numbers.md
HALF_LIFE = 2.0  # uses of every block that memory holds
HOT = {"format": "baltoro hot experts", "version": 1}


class Policy(Protocol):
    """Told of everything in the order in which it happens."""

    def touched(self, key: Key) -> None:
        """A step uses this block: it is here, or it will be admitted next."""

    def admitted(self, key: Key) -> None:
        """It is here now."""

    def removed(self, key: Key) -> None:
        """It is gone: as the victim that was named, or for a reason of the store's."""

    def victim(self, in_use: Container[Key]) -> Key | None:
        """A block that is here and not in use; None where there is none. Nothing changes before `removed`."""


class Least:
    """The block of least worth, where a use always makes one worth more than it was. Worth outlives a block's stay."""

    def __init__(self, worth: Callable[[float | None, int], float]) -> None:
        """worth: of a block that is used, from what it was worth before and the number of uses of all blocks so far."""
        self._value = worth
        self._uses = 0
        self._worth: dict[Key, float] = {}
        self._here: set[Key] = set()
        # (worth, key) of every block that is here, its worth perhaps of an earlier time, when it was less
        self._heap: list[tuple[float, Key]] = []
        self._queued: set[Key] = set()

    def touched(self, key: Key) -> None:
        self._uses += 1
        self._worth[key] = self._value(self._worth.get(key), self._uses)

    def admitted(self, key: Key) -> None:
        self._here.add(key)
        if key not in self._queued:
            self._queued.add(key)
            heapq.heappush(self._heap, (self._worth.setdefault(key, 0.0), key))

    def removed(self, key: Key) -> None:
        self._here.remove(key)

    def victim(self, in_use: Container[Key]) -> Key | None:
        found: Key | None = None
        passed: list[tuple[float, Key]] = []
        while self._heap and found is None:
            worth, key = self._heap[0]
            if key not in self._here:
                heapq.heappop(self._heap)
                self._queued.remove(key)
            elif worth != self._worth[key]:
                heapq.heapreplace(self._heap, (self._worth[key], key))
            elif key in in_use:
                passed.append(heapq.heappop(self._heap))
            else:
                found = key
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found


def least_recent() -> Least:
    return Least(lambda _, uses: float(uses))


def least_frequent(half_life: float) -> Least:
    """Every use counts, half as much when `half_life` further uses (of any block) are over.

    Worth is kept as a logarithm and as of the beginning: new uses are worth more, so old ones need no touch.
    """

    def worth(before: float | None, uses: int) -> float:
        now = uses / half_life
        return now if before is None else now + math.log2(1 + 2 ** (before - now))

    return Least(worth)


class Pinned:
    """The most used blocks are no victims while others are; the others are `rest`'s.

    What is hot is found anew after every `every` uses. Without a file of earlier uses nothing is pinned until then.
    """

    def __init__(self, rest: Policy, count: int, *, uses: Counter[Key] | None = None, every: int = 10_000) -> None:
        self.uses: Counter[Key] = Counter(uses)
        self._rest = rest
        self._count = count
        self._every = every
        self._left = every
        self._here: set[Key] = set()
        self.pinned: frozenset[Key] = frozenset()
        self._choose()

    def touched(self, key: Key) -> None:
        self.uses[key] += 1
        self._rest.touched(key)
        self._left -= 1
        if self._left == 0:
            self._left = self._every
            self._choose()

    def admitted(self, key: Key) -> None:
        self._here.add(key)
        if key not in self.pinned:
            self._rest.admitted(key)

    def removed(self, key: Key) -> None:
        self._here.remove(key)
        if key not in self.pinned:
            self._rest.removed(key)

    def victim(self, in_use: Container[Key]) -> Key | None:
        found = self._rest.victim(in_use)
        if found is None:  # a step that needs more than what is not pinned
            idle = [key for key in self._here & self.pinned if key not in in_use]
            found = min(idle, key=lambda key: (self.uses[key], key), default=None)
        return found

    def _choose(self) -> None:
        hot = frozenset(heapq.nsmallest(self._count, self.uses, key=lambda key: (-self.uses[key], key)))
        for key in (self.pinned - hot) & self._here:
            self._rest.admitted(key)
        for key in (hot - self.pinned) & self._here:
            self._rest.removed(key)
        self.pinned = hot


def write_uses(path: Path, model: str, uses: Counter[Key]) -> None:
    """What a later run pins from the beginning. Whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    rows = [[layer, expert, count] for (layer, expert), count in sorted(uses.items())]
    try:
        unfinished.write_text(json.dumps({**HOT, "model": model, "uses": rows}) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise TraceError(f"{path} cannot be written: {error.strerror}", hint="a folder that exists") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_uses(path: Path, model: str) -> Counter[Key]:
    """Of earlier runs of this model."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = cast("list[Any]", document["uses"])
        uses = Counter({(layer, expert): count for layer, expert, count in rows})
        sound = all(type(number) is int and number >= 0 for row in rows for number in row)
        known = {name: document[name] for name in HOT}
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}", hint="a file of hot experts") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(
            f"{path} is no file of hot experts: {error!r}", hint="delete it; it is learned anew"
        ) from error
    if known != HOT or not sound:
        raise TraceError(f"{path} is of another format, or damaged", hint="delete it; it is learned anew")
    if document.get("model") != model:
        raise TraceError(f"{path} is of {document.get('model')!r}, not of {model!r}", hint="name the model's own file")
    return uses


def make(name: str, room: int, *, uses: Counter[Key] | None = None) -> Policy:
    """A policy by its name for memory that holds `room` blocks. uses: of earlier runs, for those that pin."""
    if name not in POLICIES:
        raise BaltoroError(f"no policy is called {name!r}", hint=f"one of {', '.join(POLICIES)}")
    rest = least_recent() if name.endswith("lru") else least_frequent(HALF_LIFE * room)
    return Pinned(rest, int(PINNED_SHARE * room), uses=uses) if name.startswith("pinned") else rest
