"""The HTTP application: one router a dialect, the routes of no dialect, what stands around them; errors -> answers."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.errors import BaltoroError, EngineError, ModelNotFound
from baltoro.server import (
    anthropic_routes,
    envelopes,
    metrics,
    models,
    moonshot,
    openai_routes,
    openapi,
    page,
    planner,
    reference,
    responses_routes,
)
from baltoro.server.body import JsonRoute, explain
from baltoro.server.connections import MAX_HEAD_BYTES
from baltoro.server.envelopes import Problem, problem
from baltoro.server.gate import Gate

if TYPE_CHECKING:
    from baltoro.llm import ChatModel
    from baltoro.server.books import Accounts
    from baltoro.server.verified import Verified
    from baltoro.server.web_search import WebSearch


@dataclass(frozen=True, kw_only=True)
class Served:
    """The one model of this server and the names it answers to, its honest name first."""

    llm: ChatModel
    names: tuple[str, ...]
    web_search: WebSearch | None = None  # None: `$web_search` is refused
    verified: Verified | None = None  # what `baltoro verify` found, for /health
    draining: threading.Event = field(default_factory=threading.Event)  # set: new requests should go elsewhere
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        return "fp_" + sha256(self.names[0].encode()).hexdigest()[:12]

    def check(self, name: str) -> None:
        if name not in self.names:
            raise ModelNotFound(
                f"the model '{name}' is not served here",
                hint=f"served: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )


def create_app(
    served: Served,
    accounts: Accounts | None = None,
    record: Callable[[ASGIApp], ASGIApp] | None = None,
    watch: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
) -> ASGIApp:
    """accounts: who may ask, and what each of them uses; None: everybody may. record: puts a Recording around.

    watch: what else sees every request that has an id, the access log and traces
    """
    http = metrics.HttpCounts()

    def refuse(request: Request, error: BaltoroError) -> Response:
        http.note(error)
        return envelopes.answer(request, problem(error))

    async def baltoro_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, BaltoroError)
        return refuse(request, error)

    app = FastAPI(
        docs_url=None,  # FastAPI's pages run scripts from another host
        redoc_url=None,
        title="Baltoro",
        summary="Kimi K2 over the APIs of OpenAI, Anthropic and Moonshot.",
        exception_handlers={
            BaltoroError: baltoro_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
            ClientDisconnect: _left,
            Exception: _unexpected,
        },
    )
    router = APIRouter(route_class=JsonRoute, responses=openapi.OURS)

    @router.head("/health")
    @router.get("/health")
    async def health(request: Request) -> Response:
        """200 only when the engine answers, not merely the socket."""
        reason = await asyncio.to_thread(served.llm.unhealthy)
        if reason is None:
            score = {} if served.verified is None else {"verified": await asyncio.to_thread(served.verified.score)}
            return JSONResponse({"status": "ok", "model": served.names[0], **score})
        return envelopes.answer(request, problem(EngineError(reason)))

    @router.head("/ready")
    @router.get("/ready")
    async def ready(request: Request) -> Response:
        """200 while new requests are welcome: the engine answers, and the server is not about to leave."""
        if served.draining.is_set():
            return envelopes.answer(request, problem(EngineError("this server is about to leave")))
        return await health(request)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counters, gauges and histograms in Prometheus' text form, by vLLM's names."""
        healthy = await asyncio.to_thread(served.llm.unhealthy) is None
        page = metrics.text(served.llm.statistics(), http, model=served.names[0], healthy=healthy)
        return Response(page, media_type=metrics.CONTENT_TYPE)

    @router.get("/stats")
    async def stats() -> Response:
        """Counters of the engine and of its expert store since the start; `clock_s` tells the time between two looks.

        A use of the store is an expert of one layer in one step: `hits` were in memory, `misses` came from disk,
        `foreseen` of them had been asked for before; `waited_s` is the time without anything to multiply.
        """
        return JSONResponse({"model": served.names[0], "clock_s": time.monotonic(), **served.llm.statistics()})

    rooms = (models, openai_routes, responses_routes, anthropic_routes, moonshot)
    routers = [router, *(room.router(served) for room in rooms), reference.router(lambda: app.openapi())]
    routers += [page.router(), planner.router()]
    for each in routers:
        app.include_router(each)
    app.openapi = cache(lambda: openapi.document(app))
    routes = [route.path for each in routers for route in each.routes if isinstance(route, APIRoute)]
    gated = Gate(app, accounts, refuse) if accounts is not None else app
    recorded = record(gated) if record is not None else gated
    watched: ASGIApp = metrics.Counting(recorded, http, routes)
    for around in watch:
        watched = around(watched)
    return RequestIds(watched)


class RequestIds:
    """Every answer carries `x-request-id`: the client's own where it sent a sane one, so that logs can be joined.

    Anthropic's clients read the same from `request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # listen.run switches lifespan and websockets off
        sent: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
        name = sent if re.fullmatch(rb"[!-~]{1,128}", sent) else f"req_{uuid.uuid4().hex}".encode()
        scope.setdefault("state", {})["request_id"] = name.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name), (b"request-id", name)]
            await send(message)

        app = self.app
        if sum(len(field) + len(value) for field, value in scope["headers"]) > MAX_HEAD_BYTES:
            refusal = Problem(status=431, message=f"the headers have more than {MAX_HEAD_BYTES} bytes")
            app = envelopes.answer(Request(scope), refusal)
        await app(scope, receive, send_with_id)


# ------------------------------------------------------------------------------------------- error -> answer


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return envelopes.answer(request, problem(explain(error.errors())))


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = envelopes.answer(request, Problem(status=error.status_code, message=message))
    answer.headers.update(error.headers or {})
    return answer


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """In the middle of its body; nobody hears this."""
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours; uvicorn writes the traceback to its log."""
    return envelopes.answer(request, Problem(status=500, message=f"internal error: {type(error).__name__}"))
