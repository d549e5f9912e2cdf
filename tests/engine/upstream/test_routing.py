from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.engine.upstream.routing import Router

TOKENS = st.lists(st.integers(0, 3), max_size=30)
LOADS = st.lists(st.integers(0, 12), min_size=1, max_size=5)


@given(st.lists(st.tuples(TOKENS, LOADS, st.sets(st.integers(0, 4))), max_size=40), st.integers(0, 9))
def test_nobody_gets_a_request_who_is_unusable_or_much_busier_than_another(
    asked: list[tuple[list[int], list[int], set[int]]], slack: int
) -> None:
    router = Router(block_tokens=4, slack=slack)
    for prompt, running, some in asked:
        usable = {place for place in some if place < len(running)}
        chosen = router.choose(prompt, running, usable)
        assert (chosen is None) == (not usable)
        if chosen is not None:
            assert chosen in usable
            assert running[chosen] <= min(running[place] for place in usable) + slack


@given(st.lists(TOKENS, min_size=1, max_size=20), st.integers(1, 5), st.data())
def test_the_longest_beginning_that_was_seen_decides_where_loads_are_even(
    prompts: list[list[int]], count: int, data: st.DataObject
) -> None:
    """Against a list of everything that was asked, looked through from the end."""
    router, history = Router(block_tokens=4), list[tuple[tuple[int, ...], int]]()
    for prompt in prompts:
        running = data.draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
        chosen = router.choose(prompt, running, range(count))
        assert chosen is not None
        wanted = running.index(min(running))
        for blocks in range(len(prompt) // 4, 0, -1):
            beginning = tuple(prompt[: 4 * blocks])
            if (known := next((who for seen, who in reversed(history) if seen == beginning), None)) is not None:
                wanted = known
                break
        assert chosen == wanted
        history += [(tuple(prompt[: 4 * blocks]), chosen) for blocks in range(1, len(prompt) // 4 + 1)]


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=6), st.integers(2, 5))
def test_a_conversation_stays_where_it_is(first: list[int], turns: list[list[int]], count: int) -> None:
    router, prompt = Router(block_tokens=4), [1, 2, 3, 0, *first]
    home = router.choose(prompt, [0] * count, range(count))
    for number, turn in enumerate(turns):
        prompt = prompt + turn
        busy = [number % 3] * count
        assert home is not None
        busy[home] += 5  # below the slack
        assert router.choose(prompt, busy, range(count)) == home


def test_a_cache_is_worth_the_slack_and_not_one_request_more() -> None:
    for extra, wanted in ((0, 1), (1, 0)):
        router = Router(block_tokens=4, slack=3)
        assert router.choose([1] * 8, [1, 0], range(2)) == 1
        assert router.choose([1] * 8, [2, 2 + 3 + extra], range(2)) == wanted


def test_without_a_known_beginning_work_is_spread_evenly() -> None:
    router, running = Router(), [0, 0, 0]
    for number in range(30):
        chosen = router.choose([number] * 200, running, range(3))
        assert chosen is not None
        running[chosen] += 1
    assert running == [10, 10, 10]


def test_who_has_lost_its_cache_has_no_beginnings() -> None:
    router = Router(block_tokens=4)
    assert router.choose([1] * 8, [1, 0], range(2)) == 1
    assert router.choose([1] * 8, [0, 0], range(2)) == 1
    router.forget(1)
    assert router.choose([1] * 8, [0, 0], range(2)) == 0


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=40), max_size=50))
def test_what_is_remembered_is_bounded(prompts: list[list[int]]) -> None:
    router = Router(block_tokens=4, remembered=16)
    spread: Counter[int | None] = Counter()
    for prompt in prompts:
        spread[router.choose(prompt, [0, 0], range(2))] += 1
        assert len(router) <= 16
    assert spread[None] == 0
