from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from baltoro import choices
from baltoro.chat.messages import CompletionRequest, Finished, TokenDelta, Usage
from baltoro.errors import RequestError

ASKED = CompletionRequest(prompt="x", seed=5)
END = Finished("stop", Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1))


class Source:
    """Says `items`; an exception among them is raised, an event waited for."""

    def __init__(self, *items: object) -> None:
        self.items, self.told, self.closed = items, 0, False

    async def play(self):
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                    continue
                self.told += 1
                yield item
        finally:
            self.closed = True


def test_choices_differ_by_their_seeds_alone_and_the_first_by_nothing() -> None:
    several = choices.split(ASKED, 4)
    assert several[0] == ASKED
    assert len({each.seed for each in several}) == 4
    assert choices.split(ASKED, 2) == several[:2]
    assert choices.split(CompletionRequest(prompt="x"), 3) == [CompletionRequest(prompt="x")] * 3
    for n in (0, -1, 129):
        with pytest.raises(RequestError, match=f"n is {n}") as caught:
            choices.split(ASKED, n)
        assert caught.value.param == "n"


def test_usage_counts_each_prompt_once_and_every_answer() -> None:
    usages = [
        Usage(prompt_tokens=p, completion_tokens=c, cached_tokens=p // 2) for p, c in [(4, 1), (4, 2), (6, 3), (6, 4)]
    ]
    assert choices.usage(usages, 2) == Usage(prompt_tokens=10, completion_tokens=10, cached_tokens=5)
    assert choices.usage(usages[:1], 1) == usages[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merged_sources_keep_their_order_and_none_waits_for_another(count: int) -> None:
    async def run() -> None:
        gate = asyncio.Event()
        sources = [Source(TokenDelta(0, "a"), *([gate] if i == 0 and count > 1 else []), TokenDelta(1, "b"), END)
                   for i in range(count)]  # fmt: skip
        found: list[list[object]] = [[] for _ in sources]
        async with aclosing(choices.merge([each.play() for each in sources])) as items:
            async for index, item in items:
                found[index].append(item)
                if all(len(each) == 3 for each in found[1:]):
                    gate.set()  # the first goes on when all others have ended
        assert found == [[TokenDelta(0, "a"), TokenDelta(1, "b"), END]] * count

    asyncio.run(run())


def test_an_error_of_one_source_is_raised_and_leaving_early_stops_all() -> None:
    async def run() -> None:
        never = asyncio.Event()
        sources = [
            Source(TokenDelta(0, "a"), never),
            Source(ZeroDivisionError("mine")),
            Source(*[TokenDelta(0, "")] * 99),
        ]
        with pytest.raises(ZeroDivisionError, match="mine"):
            async for _ in choices.merge([each.play() for each in sources]):
                pass
        assert all(each.closed or each.told < 99 for each in sources)
        slow = [Source(*[TokenDelta(0, "")] * 99, END) for _ in range(2)]
        async with aclosing(choices.merge([each.play() for each in slow])) as items:
            await anext(items)
            await asyncio.sleep(0)
        assert sum(each.told for each in slow) < 10, "nobody reads, and they go on"

    asyncio.run(run())
