"""The HTTP application: one router a dialect, the routes of no dialect, request ids, what an error answers."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.errors import BaltoroError, EngineError, ModelNotFound
from baltoro.server import anthropic_routes, envelopes, models, moonshot, openai_routes, page
from baltoro.server.body import JsonRoute, explain
from baltoro.server.envelopes import Problem, problem

if TYPE_CHECKING:
    from baltoro.llm import ChatModel


@dataclass(frozen=True, kw_only=True)
class Served:
    """The one model of this server and the names it answers to, its honest name first."""

    llm: ChatModel
    names: tuple[str, ...]
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


def create_app(served: Served) -> ASGIApp:
    app = FastAPI(
        title="Baltoro",
        summary="Kimi K2 over the APIs of OpenAI, Anthropic and Moonshot.",
        exception_handlers={
            BaltoroError: _baltoro_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
            Exception: _unexpected,
        },
    )
    router = APIRouter(route_class=JsonRoute)

    @router.head("/health")
    @router.get("/health")
    async def health(request: Request) -> Response:
        """200 only when the engine answers, not merely the socket."""
        reason = await asyncio.to_thread(served.llm.unhealthy)
        if reason is None:
            return JSONResponse({"status": "ok", "model": served.names[0]})
        return envelopes.answer(request, problem(EngineError(reason)))

    @router.get("/stats")
    async def stats() -> Response:
        """Counters of the engine and of its expert store since the start; `clock_s` tells the time between two looks.

        A use of the store is an expert of one layer in one step: `hits` were in memory, `misses` came from disk,
        `foreseen` of them had been asked for before; `waited_s` is the time without anything to multiply.
        """
        return JSONResponse({"model": served.names[0], "clock_s": time.monotonic(), **served.llm.statistics()})

    app.include_router(router)
    app.include_router(models.router(served))
    app.include_router(openai_routes.router(served))
    app.include_router(anthropic_routes.router(served))
    app.include_router(moonshot.router(served))
    app.include_router(page.router())
    return RequestIds(app)


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

        await self.app(scope, receive, send_with_id)


# ------------------------------------------------------------------------------------------- error -> answer


async def _baltoro_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BaltoroError)
    return envelopes.answer(request, problem(error))


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


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours; uvicorn writes the traceback to its log."""
    return envelopes.answer(request, Problem(status=500, message=f"internal error: {type(error).__name__}"))
