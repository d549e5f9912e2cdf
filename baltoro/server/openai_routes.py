"""OpenAI's paths: chats and plain completions."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request, Response

from baltoro.server import completions, loosened, openai, openai_writer, openapi
from baltoro.server.body import JsonRoute
from baltoro.server.gate import admission
from baltoro.server.replies import EventStream, opened, while_connected

if TYPE_CHECKING:
    from baltoro.server.app import Served


def router(served: Served) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, responses=openapi.OPENAI)

    @routes.post("/v1/chat/completions", responses=openapi.STREAMED)
    async def chat(request: Request, body: Annotated[openai.ChatBody, Body()]) -> Response:
        served.check(body.model)
        openai.check_bound(body, served.llm.max_context)
        wanted = openai.chat_request(body, searches=served.web_search is not None)
        if served.web_search is not None:
            wanted = await served.web_search.answered(wanted)
        writer = openai_writer.Writer(body.model, served.fingerprint, wanted.logprobs)
        headers = await loosened.headers(served.llm, wanted)
        async with AsyncExitStack() as sources:
            deltas = await opened(
                sources, served.llm.astream_choices(wanted, body.n or 1, admission(request, body.model))
            )
            if body.stream:
                events = writer.events(deltas, include_usage=openai.wants_usage(body.stream_options))
                answer = EventStream(request, events, sources.pop_all())
            else:
                answer = await while_connected(request, writer.whole(deltas))
        answer.headers.update(headers)
        return answer

    @routes.post("/v1/completions", responses=openapi.STREAMED)
    async def complete(request: Request, body: Annotated[completions.CompletionBody, Body()]) -> Response:
        served.check(body.model)
        requests = completions.completion_requests(body)
        prompt_ids = None
        if body.return_token_ids:
            prompt_ids = [served.llm.encode(p) if isinstance(p, str) else list(p) for p in (r.prompt for r in requests)]
        n, scored = body.n or 1, body.logprobs is not None
        writer = completions.Writer(body.model, served.fingerprint, prompt_ids, n=n, logprobs=scored)
        async with AsyncExitStack() as sources:
            admit = admission(request, body.model)
            pieces = [  # a refusal of the third closes the first two
                piece
                for each in requests
                for piece in await opened(sources, served.llm.astream_completions(each, n, admit))
            ]
            if not body.stream:
                return await while_connected(request, writer.whole(pieces))
            events = writer.events(pieces, include_usage=openai.wants_usage(body.stream_options))
            return EventStream(request, events, sources.pop_all())

    return routes
