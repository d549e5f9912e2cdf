"""How an answer leaves, whatever its dialect: whole or as events, and cancelled when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from baltoro.chat.messages import Json
from baltoro.errors import BaltoroError
from baltoro.server import envelopes

Item = TypeVar("Item")


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, even before it began, `sources` are closed and their requests cancelled."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: AsyncGenerator[str], sources: AsyncExitStack) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_errors_as_events(request, events), headers=headers)
        self._events = events
        self._sources = sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._sources, aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _errors_as_events(request: Request, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The status line has left: what fails now is told in the stream, which then ends as it is."""
    try:
        async for event in events:
            yield event
    except BaltoroError as error:
        yield envelopes.event(request, envelopes.problem(error))


async def while_connected(request: Request, work: Coroutine[Any, Any, Json]) -> Response:
    """The result of `work` as JSON, or nothing at all where the client has left and `work` was cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return JSONResponse(working.result())
        return Response(status_code=499)  # nginx's word for it; nobody reads this
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def opened(stack: AsyncExitStack, sources: list[AsyncGenerator[Item]]) -> list[AsyncGenerator[Item]]:
    """The same sources, which `stack` will close."""
    return [await stack.enter_async_context(aclosing(source)) for source in sources]
