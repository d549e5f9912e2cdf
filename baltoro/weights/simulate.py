"""A routing trace replayed against a policy and a budget: how often an expert is in memory when its layer needs it.

All experts that one layer of one step chose are needed together. Where memory holds fewer, the layer runs in parts that
fit. Those that are missing are read, each taking the place of a victim once memory is full.

`belady` is the bound: it knows the future and gives up what is needed last. No policy misses less often.
"""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from baltoro.errors import TraceError
from baltoro.sizes import UNITS
from baltoro.weights import eviction
from baltoro.weights.eviction import Key, Policy
from baltoro.weights.trace import Header, Record

BOUND = "belady"
NEVER = 2**62
Progress = Callable[[int, int], None]  # parts done, of all


@dataclass(frozen=True, slots=True)
class Uses:
    """What a trace needs, in order: for every layer and step its experts, each once, as places in `keys`."""

    header: Header
    tokens: int
    keys: tuple[Key, ...]
    needed: array[int]
    edges: array[int]  # the nth layer and step needs needed[edges[n] : edges[n + 1]]

    @staticmethod
    def of(header: Header, records: Iterable[Record]) -> Uses:
        place = {layer: index * header.experts for index, layer in enumerate(header.layers)}
        keys = tuple((layer, expert) for layer in header.layers for expert in range(header.experts))
        needed, edges = array("q"), array("q", [0])
        tokens, before = 0, NEVER
        for layer, chosen in records:
            if layer <= before:  # a step begins
                tokens += len(chosen)
            before = layer
            needed.extend((np.unique(chosen).astype(np.int64) + place[layer]).tolist())
            edges.append(len(needed))
        return Uses(header, tokens, keys, needed, edges)

    def parts(self, room: int) -> list[tuple[int, ...]]:
        """What must be in memory together, at most `room` at once."""
        return [
            tuple(self.needed[start : min(start + room, end)])
            for begin, end in zip(self.edges, self.edges[1:], strict=False)
            for start in range(begin, end, room)
        ]


@dataclass(frozen=True, slots=True)
class Result:
    """One policy at one budget."""

    policy: str
    budget_experts: int
    budget_bytes: int  # 0 where the trace does not say how large an expert is
    tokens: int
    uses: int  # experts needed, each once for a layer and step
    misses: int
    cold_misses: int  # the first use of each: no policy is without them
    hit_rate: float
    misses_per_token: float
    bytes_per_token: float


def room(budget: str, header: Header) -> int:
    """How many experts a budget holds: `2000` is their number, `64GiB` their bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", budget.strip())
    if found is None or (found[2] and found[2] not in UNITS) or (not found[2] and "." in found[1]):
        raise TraceError(f"a budget of {budget!r}", hint=f"a number of experts, or bytes in {', '.join(UNITS)}")
    if found[2] and not header.expert_bytes:
        raise TraceError(f"a budget of {budget} for experts of unknown size", hint="give a number of experts")
    count = int(float(found[1]) * UNITS[found[2]]) // header.expert_bytes if found[2] else int(found[1])
    if count < 1:
        raise TraceError(f"a budget of {budget} holds no expert", hint=f"one has {header.expert_bytes:,} bytes")
    return min(count, len(header.layers) * header.experts)


def run(uses: Uses, name: str, count: int, *, progress: Progress | None = None) -> Result:
    """A policy by its name, `belady` among them, with room for `count` experts."""
    if name == BOUND:
        return belady(uses, count, progress=progress)
    return replay(uses, name, eviction.make(name, count), count, progress=progress)


def line(result: Result) -> str:
    budget = f"{result.budget_experts:7,} experts"
    if result.budget_bytes:
        budget += f" {result.budget_bytes / 1e9:8.1f} GB"
    text = f"{budget}  {result.policy:11} {result.hit_rate:7.2%} hit  {result.misses_per_token:8.2f} misses a token"
    return text + (f"  {result.bytes_per_token / 1e9:7.3f} GB a token" if result.bytes_per_token else "")


def replay(uses: Uses, name: str, policy: Policy, room: int, *, progress: Progress | None = None) -> Result:
    """room: experts that memory holds, at least 1."""
    parts = uses.parts(room)
    here: set[Key] = set()
    misses = 0
    for number, part in enumerate(parts):
        needed = [uses.keys[each] for each in part]
        in_use = frozenset(needed)
        missing = [key for key in needed if key not in here]
        for key in needed:
            policy.touched(key)
        for key in missing:
            if len(here) == room:
                victim = policy.victim(in_use)
                assert victim is not None and victim in here and victim not in in_use, f"{name} names {victim}"
                here.remove(victim)
                policy.removed(victim)
            here.add(key)
            policy.admitted(key)
        misses += len(missing)
        if progress and number % 4096 == 0:
            progress(number, len(parts))
    return _result(uses, name, room, misses)


def belady(uses: Uses, room: int, *, progress: Progress | None = None) -> Result:
    """The fewest misses that any policy can have."""
    parts = uses.parts(room)
    following: list[array[int]] = [array("q")] * len(parts)  # for each part, the next part that needs the same expert
    last = array("q", [NEVER]) * len(uses.keys)
    for number in range(len(parts) - 1, -1, -1):
        following[number] = array("q", [last[each] for each in parts[number]])
        for each in parts[number]:
            last[each] = number
    misses = 0
    needed_next: dict[int, int] = {}  # of those that are here
    heap: list[tuple[int, int]] = []  # (-next part, expert); outdated where it differs from needed_next
    for number, part in enumerate(parts):
        missing = [each for each in part if each not in needed_next]
        for each in part:
            needed_next.pop(each, None)  # not in the heap's reach until all of this part are in
        for _ in range(len(needed_next) + len(part) - room):
            while needed_next.get(heap[0][1]) != -heap[0][0]:
                heapq.heappop(heap)
            del needed_next[heapq.heappop(heap)[1]]
        for each, then in zip(part, following[number], strict=True):
            needed_next[each] = then
            heapq.heappush(heap, (-then, each))
        misses += len(missing)
        if progress and number % 4096 == 0:
            progress(number, len(parts))
    return _result(uses, BOUND, room, misses)


def _result(uses: Uses, name: str, room: int, misses: int) -> Result:
    count, size = len(uses.needed), uses.header.expert_bytes
    per_token = misses / max(1, uses.tokens)
    return Result(
        policy=name,
        budget_experts=room,
        budget_bytes=room * size,
        tokens=uses.tokens,
        uses=count,
        misses=misses,
        cold_misses=len(set(uses.needed)),
        hit_rate=1 - misses / max(1, count),
        misses_per_token=per_token,
        bytes_per_token=per_token * size,
    )
