"""What Moonshot's own API has beside OpenAI's: how many tokens a conversation would be.

The rest of its dialect are fields of OpenAI's chats, read in `openai.py`: `partial` on a last assistant message, which
the answer then goes on with, `thinking`, which can only be disabled, and tools of type `builtin_function`, which
Moonshot's servers run. `$web_search` is done by `web_search.py` where the operator has a function for it; all others
are refused.
Source: platform.moonshot.ai/docs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from baltoro.server import openai, openapi
from baltoro.server.body import JsonRoute, Strict

if TYPE_CHECKING:
    from baltoro.server.app import Served


class EstimateBody(Strict):
    """What POST /v1/tokenizers/estimate-token-count takes."""

    model: str
    messages: Annotated[list[openai.MessageBody], Field(min_length=1)]
    tools: list[openai.AnyTool] | None = None


def router(served: Served) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, responses=openapi.OPENAI)

    @routes.post("/v1/tokenizers/estimate-token-count")
    async def estimate(body: Annotated[EstimateBody, Body()]) -> Response:
        """No estimate: the prompt of a chat, counted."""
        served.check(body.model)
        chat = openai.ChatBody.model_construct(messages=body.messages, tools=body.tools)
        wanted = openai.chat_request(chat, searches=served.web_search is not None)
        if served.web_search is not None:
            wanted = await served.web_search.answered(wanted)
        total = await asyncio.to_thread(served.llm.count_tokens, wanted)
        return JSONResponse({"data": {"total_tokens": total}})

    return routes
