"""OpenAI's path for responses, as agents such as Codex speak it."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request, Response

from baltoro.errors import RequestError
from baltoro.server import loosened, openapi, responses, responses_writer
from baltoro.server.body import JsonRoute
from baltoro.server.gate import admission
from baltoro.server.replies import EventStream, opened, while_connected

if TYPE_CHECKING:
    from baltoro.server.app import Served

MAX_TOLD = 1000  # names of tools remembered as told; agents send the same ones every turn

_log = logging.getLogger(__name__)


def router(served: Served) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, responses=openapi.OPENAI)
    told: set[str] = set()  # tools that the log has named

    @routes.post("/v1/responses", responses=openapi.STREAMED)
    async def respond(request: Request, body: Annotated[responses.ResponseBody, Body()]) -> Response:
        served.check(body.model)
        asked = responses.asked(body)
        for tool in asked.offered.left_out:
            if tool not in told and len(told) < MAX_TOLD:
                told.add(tool)
                _log.warning("tools of type %s are not offered to the model, here and whenever they come again", tool)
        writer = responses_writer.Writer(body, asked.request, asked.offered)
        async with AsyncExitStack() as sources:
            try:
                headers = await loosened.headers(served.llm, asked.request)
                (deltas,) = await opened(
                    sources, served.llm.astream_choices(asked.request, 1, admission(request, body.model))
                )
            except RequestError as error:
                raise asked.told(error) from error
            if body.stream:
                answer = EventStream(request, writer.events(deltas), sources.pop_all())
            else:
                answer = await while_connected(request, writer.whole(deltas))
        answer.headers.update(headers)
        return answer

    return routes
