"""Anthropic's paths: messages, and how many tokens they would be."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from baltoro.server import anthropic, anthropic_writer, loosened, openapi
from baltoro.server.body import JsonRoute
from baltoro.server.gate import admission
from baltoro.server.replies import EventStream, opened, while_connected

if TYPE_CHECKING:
    from baltoro.server.app import Served


def router(served: Served) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, responses=openapi.ANTHROPIC)

    @routes.post("/v1/messages", responses=openapi.STREAMED)
    async def messages(request: Request, body: Annotated[anthropic.MessagesBody, Body()]) -> Response:
        served.check(body.model)
        writer = anthropic_writer.Writer(body.model, body.max_tokens)
        wanted = anthropic.chat_request(body)
        headers = await loosened.headers(served.llm, wanted)
        async with AsyncExitStack() as sources:
            (deltas,) = await opened(sources, served.llm.astream_choices(wanted, 1, admission(request, body.model)))
            if body.stream:
                answer = EventStream(request, writer.events(deltas), sources.pop_all())
            else:
                answer = await while_connected(request, writer.whole(deltas))
        answer.headers.update(headers)
        return answer

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(body: Annotated[anthropic.PromptBody, Body()]) -> Response:
        served.check(body.model)
        wanted = anthropic.prompt_request(body)
        return JSONResponse({"input_tokens": await asyncio.to_thread(served.llm.count_tokens, wanted)})

    return routes
