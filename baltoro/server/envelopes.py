"""What an error answers: its status, and the envelope of the dialect whose path was asked."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from baltoro.chat.messages import Json
from baltoro.errors import (
    BaltoroError,
    ContextError,
    DeadlineError,
    EngineError,
    ModelNotFound,
    QueueFull,
    RequestError,
)
from baltoro.server import openai
from baltoro.server.body import BodyTooLarge

_STATUS = {QueueFull: 429, DeadlineError: 504, EngineError: 503}  # the first that fits
_CODE = {429: "rate_limit_exceeded", 504: "request_timeout"}
# Anthropic's clients choose their exception by the status, people and logs read the type.
_ANTHROPIC_TYPE = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An error before it is put into words of a dialect."""

    status: int
    message: str
    param: str | None = None  # the field of the request that is to blame
    code: str | None = None
    retry_after_s: int | None = None
    too_long: bool = False  # the prompt, for the context


def problem(error: BaltoroError) -> Problem:
    """Of an error that we raised ourselves."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, RequestError):
        status = 404 if isinstance(error, ModelNotFound) else 413 if isinstance(error, BodyTooLarge) else 400
        too_long = isinstance(error, ContextError)
        return Problem(status=status, message=message, param=error.param, code=error.code, too_long=too_long)
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    later = error.retry_after_s if isinstance(error, QueueFull) else None
    return Problem(status=status, message=message, code=_CODE.get(status), retry_after_s=later)


def speaks_anthropic(request: Request) -> bool:
    """Whether the client expects Anthropic's forms. Both vendors have /v1/models; a header tells them apart."""
    path = request.url.path
    asked_by_anthropic = path.startswith("/v1/models") and "anthropic-version" in request.headers
    return asked_by_anthropic or path == "/v1/messages" or path.startswith("/v1/messages/")


def answer(request: Request, found: Problem) -> Response:
    headers = None if found.retry_after_s is None else {"retry-after": str(found.retry_after_s)}
    return JSONResponse(_envelope(request, found), found.status, headers)


def event(request: Request, found: Problem) -> str:
    """The same in a stream whose status line has left; both vendors' clients raise at an event of this name."""
    return "event: error\n" + openai.event(_envelope(request, found))


def _envelope(request: Request, found: Problem) -> dict[str, Json]:
    if not speaks_anthropic(request):
        return openai.error_json(found.message, status=found.status, param=found.param, code=found.code)
    kind = "api_error" if found.status >= 500 else "invalid_request_error"
    # Claude Code compacts its conversation when it reads these words.
    message = f"prompt is too long: {found.message}" if found.too_long else found.message
    error = {"type": _ANTHROPIC_TYPE.get(found.status, kind), "message": message}
    return {"type": "error", "error": error, "request_id": request.state.request_id}
