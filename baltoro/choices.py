"""From one request to its choices: sampling, seeds, all streams in one, usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TypeVar

from baltoro.chat.messages import Finished, Usage, Wishes
from baltoro.engine import sampler
from baltoro.engine.request import SamplingParams
from baltoro.errors import RequestError

MAX_CHOICES = 128

Asked = TypeVar("Asked", bound=Wishes)
Item = TypeVar("Item")


def split(request: Asked, n: int) -> list[Asked]:
    """A request for each of `n` choices. With a seed each has its own, and choice 0 is what n = 1 gives."""
    if not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"n is {n}, expected 1 to {MAX_CHOICES}", param="n")
    if request.seed is None:
        return [request] * n
    return [replace(request, seed=sampler.choice_seed(request.seed, choice)) for choice in range(n)]


def sampling(wishes: Wishes, max_tokens: int, stop_ids: frozenset[int]) -> SamplingParams:
    """The wishes in the engine's terms. stop_ids: what ends an answer, unless that is to be ignored"""
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=wishes.min_tokens,
        temperature=wishes.temperature,
        top_p=wishes.top_p,
        top_k=wishes.top_k,
        min_p=wishes.min_p,
        repetition_penalty=wishes.repetition_penalty,
        presence_penalty=wishes.presence_penalty,
        frequency_penalty=wishes.frequency_penalty,
        logit_bias=wishes.logit_bias,
        seed=wishes.seed,
        stop_token_ids=wishes.stop_token_ids | (frozenset[int]() if wishes.ignore_eos else stop_ids),
        logprobs=wishes.logprobs,
    )


def usage(usages: Sequence[Usage], n: int) -> Usage:
    """What `n` choices of each prompt cost together: every prompt once, every answer.

    usages: of all choices, those of the first prompt first
    """
    prompts = usages[::n]
    return Usage(
        prompt_tokens=sum(each.prompt_tokens for each in prompts),
        completion_tokens=sum(each.completion_tokens for each in usages),
        cached_tokens=sum(each.cached_tokens for each in prompts),
    )


async def merge(sources: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The items of all sources as they come, each with the index of its source, until all are Finished.

    The first error of a source is raised here. Whoever made the sources closes them.
    """
    if len(sources) == 1:  # most requests: a token then wakes no task but its reader's
        async for item in sources[0]:
            yield 0, item
        return
    ready: asyncio.Queue[tuple[int, Item | Exception]] = asyncio.Queue(len(sources))  # a slow reader slows them down

    async def pump(index: int, source: AsyncGenerator[Item]) -> None:
        try:
            async for item in source:
                await ready.put((index, item))
        except Exception as error:  # not swallowed: raised where the items are read
            await ready.put((index, error))

    pumps = [asyncio.ensure_future(pump(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(sources)
        while left:
            index, item = await ready.get()
            if isinstance(item, Exception):
                raise item
            left -= isinstance(item, Finished)
            yield index, item
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
