"""Policies against slow forms of themselves, and what every one of them must keep to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.errors import BaltoroError, TraceError
from baltoro.weights import eviction
from baltoro.weights.eviction import Key, Pinned, Policy, least_frequent, least_recent

keys = st.tuples(st.integers(0, 1), st.integers(0, 5))
groups = st.lists(st.sets(keys, min_size=1, max_size=3).map(sorted), max_size=60)
MAKERS: dict[str, Callable[[], Policy]] = {
    "lru": least_recent,
    "lfu": lambda: least_frequent(7),
    "pinned-lru": lambda: Pinned(least_recent(), 2, every=5),
    "pinned-lfu": lambda: Pinned(least_frequent(7), 3, every=4),
    "all pinned": lambda: Pinned(least_recent(), 99, every=1),
}


def drive(policy: Policy, steps: list[list[Key]], room: int) -> tuple[int, list[Key]]:
    """Hits and victims, by a store that keeps `room` blocks."""
    here: set[Key] = set()
    hits, victims = 0, []
    for needed in steps:
        missing = [key for key in needed if key not in here]
        hits += len(needed) - len(missing)
        for key in needed:
            policy.touched(key)
        for key in missing:
            if len(here) == room:
                victim = policy.victim(frozenset(needed))
                assert victim == policy.victim(frozenset(needed)), "asking changes nothing"
                assert victim is not None
                assert victim in here, "a victim is here"
                assert victim not in needed, "a victim is not in use"
                here.remove(victim)
                policy.removed(victim)
                victims.append(victim)
            here.add(key)
            policy.admitted(key)
            assert len(here) <= room
    return hits, victims


@pytest.mark.parametrize("name", MAKERS)
@given(steps=groups, room=st.integers(3, 8))
def test_victims_are_here_and_never_in_use(name: str, steps: list[list[Key]], room: int) -> None:
    drive(MAKERS[name](), steps, room)


@pytest.mark.parametrize("name", MAKERS)
def test_where_everything_is_in_use_there_is_no_victim(name: str) -> None:
    policy = MAKERS[name]()
    assert policy.victim(()) is None
    for key in [(0, 0), (0, 1)]:
        policy.touched(key)
        policy.admitted(key)
    assert policy.victim({(0, 0), (0, 1)}) is None
    assert policy.victim({(0, 0)}) == (0, 1)
    policy.removed((0, 1))
    assert policy.victim(()) == (0, 0)


class SlowRecent:
    """Looks up when each was last used."""

    def __init__(self) -> None:
        self.history: list[Key] = []
        self.here: set[Key] = set()

    def touched(self, key: Key) -> None:
        self.history.append(key)

    def admitted(self, key: Key) -> None:
        self.here.add(key)

    def removed(self, key: Key) -> None:
        self.here.remove(key)

    def victim(self, in_use: frozenset[Key]) -> Key | None:
        last = {key: place for place, key in enumerate(self.history)}
        return min(self.here - in_use, key=lambda key: last[key], default=None)


class SlowFrequent(SlowRecent):
    """Adds up all uses, each halved for every `half_life` that came after it."""

    def victim(self, in_use: frozenset[Key]) -> Key | None:
        worth: Counter[Key] = Counter()
        for age, key in enumerate(reversed(self.history)):
            worth[key] += 2 ** (-age / 7)  # type: ignore[assignment]
        return min(self.here - in_use, key=lambda key: worth[key], default=None)


@given(steps=groups, room=st.integers(3, 8))
def test_the_least_recent_is_the_one_that_history_says(steps: list[list[Key]], room: int) -> None:
    assert drive(least_recent(), steps, room) == drive(SlowRecent(), steps, room)


@settings(max_examples=200)
@given(steps=groups, room=st.integers(3, 8))
def test_the_least_frequent_is_the_one_that_history_says(steps: list[list[Key]], room: int) -> None:
    assert drive(least_frequent(7), steps, room) == drive(SlowFrequent(), steps, room)


def test_a_long_life_does_not_run_out_of_numbers() -> None:
    policy = least_frequent(1)
    for turn in range(100_000):
        policy.touched((0, turn % 2))
    for key in [(0, 0), (0, 1)]:
        policy.admitted(key)
    assert policy.victim(()) == (0, 0)
    assert all(math.isfinite(worth) for worth in policy._worth.values())


def test_the_hot_ones_stay_while_others_are_there() -> None:
    policy = Pinned(least_recent(), 1, uses=Counter({(0, 7): 9, (0, 1): 3}))
    for key in [(0, 7), (0, 1), (0, 2)]:
        policy.touched(key)
        policy.admitted(key)
    for other in [(0, 1), (0, 2)]:
        assert policy.victim(()) == other
        policy.removed(other)
    assert policy.victim(()) == (0, 7), "only pinned ones are left"


def test_what_becomes_hot_is_pinned_after_a_while_and_what_was_is_not() -> None:
    policy = Pinned(least_recent(), 1, uses=Counter({(0, 0): 2}), every=10)
    for key in [(0, 0), (0, 1)]:
        policy.admitted(key)
    for _ in range(10):
        policy.touched((0, 1))
    assert policy.pinned == {(0, 1)}
    assert policy.victim(()) == (0, 0)


def test_uses_are_kept_on_disk_for_the_next_run(tmp_path: Path) -> None:
    path, uses = tmp_path / "hot.json", Counter({(3, 5): 7, (60, 383): 1})
    eviction.write_uses(path, "k2", uses)
    assert eviction.read_uses(path, "k2") == uses
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TraceError, match="is of 'k2', not of 'other'"):
        eviction.read_uses(path, "other")
    with pytest.raises(TraceError, match="cannot be read"):
        eviction.read_uses(tmp_path / "none", "k2")
    with pytest.raises(TraceError, match="cannot be written"):
        eviction.write_uses(tmp_path / "none" / "hot.json", "k2", uses)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\xff",
        '{"format": "baltoro hot experts", "version": 2, "model": "k2", "uses": []}',
        '{"format": "baltoro hot experts", "version": 1, "model": "k2", "uses": [[1, 2]]}',
        '{"format": "baltoro hot experts", "version": 1, "model": "k2", "uses": [[1, 2, -3]]}',
        '{"format": "baltoro hot experts", "version": 1, "model": "k2", "uses": [[1, 2, "3"]]}',
        '{"format": "baltoro hot experts", "version": 1, "model": "k2", "uses": [[[], 2, 3]]}',
        json.dumps({"format": "baltoro hot experts", "version": 1, "model": "k2", "uses": None}),
    ],
)
def test_a_damaged_file_of_hot_experts_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "hot.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TraceError, match=r"hot\.json is"):
        eviction.read_uses(path, "k2")


def test_policies_have_names_and_an_unknown_one_is_an_error() -> None:
    for name in eviction.POLICIES:
        eviction.make(name, 1)
    pinned = eviction.make("pinned-lfu", 8, uses=Counter({(0, expert): expert for expert in range(1, 9)}))
    assert isinstance(pinned, Pinned)
    assert pinned.pinned == {(0, expert) for expert in range(3, 9)}
    for name in ["", "LRU", "pinned", "pinned-", "-lru", "pinned-pinned-lru", "arc"]:
        with pytest.raises(BaltoroError, match="no policy is called"):
            eviction.make(name, 8)
