"""GET /v1/models, in OpenAI's form or in Anthropic's: both vendors have the path, a header tells who asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from baltoro.chat.messages import Json
from baltoro.errors import RequestError
from baltoro.server import openapi
from baltoro.server.body import JsonRoute
from baltoro.server.envelopes import speaks_anthropic

if TYPE_CHECKING:
    from baltoro.server.app import Served


def router(served: Served) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, responses=openapi.EITHER)

    @routes.get("/v1/models")
    async def models(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> Response:
        """`limit`, `after_id` and `before_id` are Anthropic's pages; OpenAI's list is always whole."""
        if not speaks_anthropic(request):
            return JSONResponse({"object": "list", "data": [_openai_card(served, name) for name in served.names]})
        names, more = page(served.names, limit, after_id, before_id)
        first, last = (names[0], names[-1]) if names else (None, None)
        data = [_anthropic_card(served, name) for name in names]
        return JSONResponse({"data": data, "has_more": more, "first_id": first, "last_id": last})

    @routes.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        served.check(name)
        return JSONResponse((_anthropic_card if speaks_anthropic(request) else _openai_card)(served, name))

    return routes


def page(
    names: tuple[str, ...], limit: int, after_id: str | None, before_id: str | None
) -> tuple[tuple[str, ...], bool]:
    """The names of a page, and whether there are more in the direction of the walk."""
    for param, name in (("after_id", after_id), ("before_id", before_id)):
        if name is not None and name not in names:
            raise RequestError(f"{param} is '{name}', expected a served model: {', '.join(names)}", param=param)
    start = 0 if after_id is None else names.index(after_id) + 1
    end = len(names) if before_id is None else names.index(before_id)
    rest = names[start:end]
    page = rest[-limit:] if before_id is not None and after_id is None else rest[:limit]
    return page, len(page) < len(rest)


def _openai_card(served: Served, name: str) -> dict[str, Json]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "baltoro",
        "root": served.names[0],  # as vLLM: what the alias really is
        "max_model_len": served.llm.max_context,
    }


def _anthropic_card(served: Served, name: str) -> dict[str, Json]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(served.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": served.llm.max_context,
        "max_tokens": served.llm.max_context,
    }
