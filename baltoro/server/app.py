"""The HTTP application: routes, what an error answers, and cancelling when a client goes away."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.chat.messages import Json
from baltoro.errors import (
    AccessError,
    BaltoroError,
    DeadlineError,
    EngineError,
    ModelNotFound,
    QueueFull,
    RequestError,
)
from baltoro.server import completions, metrics, openai, openai_writer, refusals
from baltoro.server.body import BodyTooLarge, JsonRoute, explain
from baltoro.server.gate import Gate, admission

if TYPE_CHECKING:
    from baltoro.llm import ChatModel
    from baltoro.server.books import Accounts


Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The one model of this server and the names it answers to, its honest name first."""

    llm: ChatModel
    names: tuple[str, ...]
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


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, even before it began, `sources` are closed and their requests cancelled."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], sources: AsyncExitStack) -> None:
        super().__init__(_errors_as_events(events), headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._sources = sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._sources, aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _errors_as_events(events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The status line has left: what fails now is told in the stream, which then ends without [DONE]."""
    try:
        async for event in events:
            yield event
    except BaltoroError as error:
        yield "event: error\n" + openai.event(_envelope(error)[1])


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


def create_app(
    served: Served, accounts: Accounts | None = None, record: Callable[[ASGIApp], ASGIApp] | None = None
) -> ASGIApp:
    """accounts: who may ask, and what each of them uses; None: everybody may. record: puts a Recording around."""
    http = metrics.HttpCounts()

    def refuse(request: Request, error: BaltoroError) -> Response:
        if (reason := refusals.reason(error)) is not None:
            http.refused[reason] += 1
        return refusals.answer(request, error) if isinstance(error, AccessError) else _answer(error)

    async def baltoro_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, BaltoroError)
        return refuse(request, error)

    app = FastAPI(
        title="Baltoro",
        summary="Kimi K2 over OpenAI's API.",
        exception_handlers={
            BaltoroError: baltoro_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
            Exception: _unexpected,
        },
    )
    router = APIRouter(route_class=JsonRoute)

    @router.head("/health")
    @router.get("/health")
    async def health() -> Response:
        """200 only when the engine answers, not merely the socket."""
        reason = await asyncio.to_thread(served.llm.unhealthy)
        if reason is None:
            return JSONResponse({"status": "ok", "model": served.names[0]})
        return _answer(EngineError(reason))

    @router.head("/ready")
    @router.get("/ready")
    async def ready() -> Response:
        """200 while new requests are welcome: the engine answers, and the server is not about to leave."""
        if served.draining.is_set():
            return _answer(EngineError("this server is about to leave"))
        return await health()

    @router.get("/metrics")
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

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model_card(served, name) for name in served.names]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        served.check(name)
        return JSONResponse(_model_card(served, name))

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: Annotated[openai.ChatBody, Body()]) -> Response:
        served.check(body.model)
        wanted = openai.chat_request(body)
        writer = openai_writer.Writer(body.model, served.fingerprint, wanted.logprobs)
        async with AsyncExitStack() as sources:
            deltas = await _opened(sources, served.llm.astream_choices(wanted, body.n or 1, admission(request)))
            if not body.stream:
                return await while_connected(request, writer.whole(deltas))
            events = writer.events(deltas, include_usage=openai.wants_usage(body.stream_options))
            return EventStream(events, sources.pop_all())

    @router.post("/v1/completions")
    async def complete(request: Request, body: Annotated[completions.CompletionBody, Body()]) -> Response:
        served.check(body.model)
        requests = completions.completion_requests(body)
        prompt_ids = None
        if body.return_token_ids:
            prompt_ids = [served.llm.encode(p) if isinstance(p, str) else list(p) for p in (r.prompt for r in requests)]
        n, scored = body.n or 1, body.logprobs is not None
        writer = completions.Writer(body.model, served.fingerprint, prompt_ids, n=n, logprobs=scored)
        async with AsyncExitStack() as sources:
            admit = admission(request)
            pieces = [  # a refusal of the third closes the first two
                piece
                for each in requests
                for piece in await _opened(sources, served.llm.astream_completions(each, n, admit))
            ]
            if not body.stream:
                return await while_connected(request, writer.whole(pieces))
            events = writer.events(pieces, include_usage=openai.wants_usage(body.stream_options))
            return EventStream(events, sources.pop_all())

    routers = [router]
    for each in routers:
        app.include_router(each)
    routes = [route.path for each in routers for route in each.routes if isinstance(route, APIRoute)]
    gated = Gate(app, accounts, refuse) if accounts is not None else app
    recorded = record(gated) if record is not None else gated
    return RequestIds(metrics.Counting(recorded, http, routes))


async def _opened(stack: AsyncExitStack, sources: list[AsyncGenerator[Item]]) -> list[AsyncGenerator[Item]]:
    """The same sources, which `stack` will close."""
    return [await stack.enter_async_context(aclosing(source)) for source in sources]


def _model_card(served: Served, name: str) -> dict[str, Json]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "baltoro",
        "root": served.names[0],  # as vLLM: what the alias really is
        "max_model_len": served.llm.max_context,
    }


class RequestIds:
    """Every answer carries `x-request-id`: the client's own where it sent a sane one, so that logs can be joined."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # listen.run switches lifespan and websockets off
        sent: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
        name = sent if re.fullmatch(rb"[!-~]{1,128}", sent) else f"req_{uuid.uuid4().hex}".encode()
        scope.setdefault("state", {})["request_id"] = name.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        await self.app(scope, receive, send_with_id)


# ------------------------------------------------------------------------------------------- error -> answer


_STATUS = {QueueFull: 429, DeadlineError: 504, EngineError: 503}  # the first that fits
_CODE = {429: "rate_limit_exceeded", 504: "request_timeout"}


def _envelope(error: BaltoroError) -> tuple[int, dict[str, Json]]:
    """The status and OpenAI's envelope for an error that we raised ourselves."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if not isinstance(error, RequestError):
        status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
        return status, openai.error_json(message, status=status, code=_CODE.get(status))
    status = 404 if isinstance(error, ModelNotFound) else 413 if isinstance(error, BodyTooLarge) else 400
    return status, openai.error_json(message, status=status, param=error.param, code=error.code)


def _answer(error: BaltoroError) -> Response:
    status, body = _envelope(error)
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, QueueFull) else None
    return JSONResponse(body, status, headers)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(explain(error.errors()))


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(openai.error_json(message, status=error.status_code), error.status_code, headers=error.headers)


async def _unexpected(_: Request, error: Exception) -> Response:
    """A fault of ours; uvicorn writes the traceback to its log."""
    return JSONResponse(openai.error_json(f"internal error: {type(error).__name__}", status=500), 500)
