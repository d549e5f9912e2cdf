"""The simulator against a slow store, and the bound against every way there is to evict."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.errors import BaltoroError, TraceError
from baltoro.weights import eviction, simulate
from baltoro.weights.simulate import Uses
from baltoro.weights.trace import Header, Record, synthetic

SMALL = Header(model="small", layers=(1, 2), experts=4, experts_per_token=2, expert_bytes=10)
Plain = list[tuple[int, list[list[int]]]]
steps = st.lists(
    st.tuples(
        st.sampled_from([1, 2]),
        st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True), min_size=1, max_size=3),
    ),
    max_size=12,
)


def uses_of(records: Plain, header: Header = SMALL) -> Uses:
    return Uses.of(header, [Record(layer, np.array(chosen, dtype=np.uint16)) for layer, chosen in records])


def fewest_misses(parts: Sequence[Sequence[int]], room: int) -> int:
    """By trying everything that may be evicted, all of it at any time."""

    @functools.cache
    def from_here(number: int, here: frozenset[int]) -> int:
        if number == len(parts):
            return 0
        needed = frozenset(parts[number])
        others = here - needed
        keep = min(len(others), room - len(needed))
        after = min(
            from_here(number + 1, needed | frozenset(kept))
            for count in range(keep + 1)
            for kept in itertools.combinations(sorted(others), count)
        )
        return len(needed - here) + after

    return from_here(0, frozenset())


@settings(max_examples=150, deadline=None)
@given(records=steps, room=st.integers(1, 6))
def test_the_bound_is_the_best_of_all_ways_to_evict(records: Plain, room: int) -> None:
    uses = uses_of(records)
    assert simulate.belady(uses, room).misses == fewest_misses(uses.parts(room), room)


@pytest.mark.parametrize("name", eviction.POLICIES)
@given(records=steps, room=st.integers(1, 8))
def test_no_policy_passes_the_bound_and_none_is_without_the_first_misses(name: str, records: Plain, room: int) -> None:
    uses = uses_of(records)
    found, bound = simulate.run(uses, name, room), simulate.run(uses, "belady", room)
    assert found.misses >= bound.misses >= bound.cold_misses == found.cold_misses
    if room == 8:  # all of them
        assert found.misses == found.cold_misses


@given(records=steps, room=st.integers(1, 8))
def test_hits_of_lru_are_those_of_a_list(records: Plain, room: int) -> None:
    uses = uses_of(records)
    recent: list[int] = []  # newest last
    misses = 0
    for part in uses.parts(room):
        misses += sum(each not in recent for each in part)
        recent = [each for each in recent if each not in part] + list(part)
        recent = recent[-room:]
    assert simulate.run(uses, "lru", room).misses == misses


@pytest.mark.parametrize("skew, sticky", [(0.0, 0.0), (0.8, 0.3), (1.2, 0.0), (0.5, 0.8)])
def test_on_longer_traces_too_no_policy_passes_the_bound_and_more_room_helps_it(skew: float, sticky: float) -> None:
    header = Header(model="m", layers=tuple(range(6)), experts=64, experts_per_token=4)
    uses = Uses.of(header, synthetic(header, tokens=150, skew=skew, sticky=sticky, seed=0))
    before = None
    for room in (4, 40, 150, 300):
        bound = simulate.run(uses, "belady", room).misses
        assert before is None or bound <= before
        before = bound
        for name in eviction.POLICIES:
            assert simulate.run(uses, name, room).misses >= bound


def test_rates_are_counted_by_tokens() -> None:
    # a prompt of three tokens, then two steps of one
    uses = uses_of(
        [(1, [[0, 1], [1, 2], [0, 1]]), (2, [[0, 1], [0, 1], [0, 1]]), (1, [[0, 1]]), (2, [[3, 1]]), (1, [[0, 1]])]
    )
    found = simulate.run(uses, "lru", 8)
    assert (found.tokens, found.uses, found.misses, found.cold_misses) == (5, 3 + 2 + 2 + 2 + 2, 6, 6)
    assert found.hit_rate == pytest.approx(5 / 11)
    assert found.misses_per_token == pytest.approx(6 / 5)
    assert found.bytes_per_token == pytest.approx(60 / 5)
    assert found.budget_bytes == 80


def test_a_layer_that_needs_more_than_there_is_room_for_runs_in_parts() -> None:
    uses = uses_of([(1, [[0, 1], [2, 3]])] * 3)
    assert uses.parts(3) == [(0, 1, 2), (3,)] * 3
    for name in (*eviction.POLICIES, "belady"):
        assert simulate.run(uses, name, 1).misses == 12


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    for name in ("lru", "belady"):
        simulate.run(uses_of([(1, [[0, 1]])] * 5000), name, 4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 5000), (4096, 5000)] * 2


@pytest.mark.parametrize(
    "budget, count", [("3", 3), ("100", 8), ("35B", None), ("0.03kB", 3), (" 1 KiB ", 8), ("2GiB", 8), ("40 kB", 8)]
)
def test_a_budget_is_a_number_of_experts_or_bytes(budget: str, count: int | None) -> None:
    if count is None:
        with pytest.raises(TraceError, match=budget):
            simulate.room(budget, SMALL)
    else:
        assert simulate.room(budget, SMALL) == count


@pytest.mark.parametrize("budget", ["", "-1", "1.5", "x", "4 gib", "0", "0.001kB", "1e3", "nan"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(TraceError, match="a budget of"):
        simulate.room(budget, SMALL)


def test_bytes_need_an_expert_of_known_size() -> None:
    with pytest.raises(TraceError, match="unknown size"):
        simulate.room("4GiB", Header(model="m", layers=(1,), experts=4, experts_per_token=2))


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(BaltoroError, match="no policy is called 'optimal'"):
        simulate.run(uses_of([]), "optimal", 3)
