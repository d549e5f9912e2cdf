"""The sliding log against its definition: looking at every minute there is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.server.limits import Window

MINUTE = 60
PAUSES = st.sampled_from([0, 0, 0, 1, 2, 29, 30, 59, 60, 61, 200])  # seconds; all sums of them are exact


def brute_room(limit: int, held: int, log: list[tuple[int, int]], now: int) -> int:
    """log: everything that was ever added, with its time"""
    return limit - held - sum(amount for then, amount in log if now - MINUTE < then <= now)


@settings(deadline=None)
@given(st.integers(0, 20), st.lists(st.tuples(PAUSES, st.integers(0, 8)), max_size=60))
def test_no_minute_ever_has_more_than_the_limit(limit: int, wishes: list[tuple[int, int]]) -> None:
    window, now, admitted = Window(limit), 0, list[tuple[int, int]]()
    for pause, amount in wishes:
        now += pause
        assert window.room(now) == brute_room(limit, 0, admitted, now)
        if window.room(now) >= amount:
            window.add(amount, now)
            admitted.append((now, amount))
    for begin in range(now + 1):  # every half-open minute
        assert sum(amount for then, amount in admitted if begin <= then < begin + MINUTE) <= limit


@settings(deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.tuples(PAUSES, st.integers(-8, 8), st.integers(0, 20)), max_size=40),
    st.integers(1, 20),
)
def test_waiting_as_told_makes_room_and_a_second_less_does_not(
    limit: int, events: list[tuple[int, int, int]], wanted: int
) -> None:
    """An event: a pause; what is held more or less; what is added."""
    window, now, log = Window(limit), 0, list[tuple[int, int]]()
    for pause, held, added in events:
        now += pause
        window.held = max(0, window.held + held)
        window.add(added, now)
        log.append((now, added))
    if window.room(now) >= wanted or limit - window.held < wanted:
        return  # there is room already, or no wait makes it
    wait_s = window.wait_s(wanted, now)
    assert brute_room(limit, window.held, log, now + wait_s) >= wanted
    assert wait_s == 1 or brute_room(limit, window.held, log, now + wait_s - 1) < wanted


def test_a_limit_that_changes_counts_what_was_there_before() -> None:
    window = Window(10)
    window.add(8, 0.0)
    window.limit = 5
    assert window.room(1.0) == -3
    assert window.room(60.0) == 5
    assert window.reset_s(60.0) == 0.0
