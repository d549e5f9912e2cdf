"""What an error answers: its status, and the envelope of the dialect whose path was asked.

A budget that is used up is 429 insufficient_quota at OpenAI and 402 billing_error at Anthropic; so it is here. Both
vendors' clients ask again after a 429 unless `x-should-retry` tells them not to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from baltoro.chat.messages import Json
from baltoro.errors import (
    AccessError,
    BaltoroError,
    ContextError,
    DeadlineError,
    EngineError,
    ModelNotFound,
    QueueFull,
    RequestError,
    SpentError,
)
from baltoro.server import openai
from baltoro.server.body import BodyTooLarge, BodyTooSlow

_REFUSAL = {ModelNotFound: 404, BodyTooSlow: 408, BodyTooLarge: 413}  # of requests; all else is 400
_STATUS = {QueueFull: 429, DeadlineError: 504, EngineError: 503}  # the first that fits
_CODE = {429: "rate_limit_exceeded", 504: "request_timeout"}
# Anthropic's clients choose their exception by the status, people and logs read the type.
_ANTHROPIC_TYPE = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
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
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    spent: bool = False  # a budget, which no wait fills up again
    sizes: tuple[int, int] | None = None  # tokens of a prompt that is too long, and of the context


def problem(error: BaltoroError) -> Problem:
    """Of an error that we raised ourselves."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, RequestError):
        status = next((status for kind, status in _REFUSAL.items() if isinstance(error, kind)), 400)
        sizes = error.sizes if isinstance(error, ContextError) else None
        headers = {"connection": "close"} if status == 408 else {}  # what is still to come is no next request
        return Problem(status=status, message=message, param=error.param, code=error.code, sizes=sizes, headers=headers)
    if isinstance(error, AccessError):
        spent = isinstance(error, SpentError) and error.limit == "budget"
        return Problem(status=error.status, message=message, code=error.code, headers=_headers(error), spent=spent)
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    return Problem(status=status, message=message, code=_CODE.get(status), headers=_headers(error))


def _headers(error: BaltoroError) -> dict[str, str]:
    if isinstance(error, QueueFull | SpentError):
        later = error.retry_after_s
        return {"x-should-retry": "false"} if later is None else {"retry-after": str(later)}
    return {"www-authenticate": "Bearer"} if isinstance(error, AccessError) and error.status == 401 else {}


def speaks_anthropic(request: Request) -> bool:
    """Whether the client expects Anthropic's forms. Both vendors have /v1/models; a header tells them apart."""
    path = request.url.path
    asked_by_anthropic = path.startswith("/v1/models") and "anthropic-version" in request.headers
    return asked_by_anthropic or path == "/v1/messages" or path.startswith("/v1/messages/")


def answer(request: Request, found: Problem) -> Response:
    status = 402 if found.spent and speaks_anthropic(request) else found.status
    return JSONResponse(_envelope(request, found), status, found.headers)


def event(request: Request, found: Problem) -> str:
    """The same in a stream whose status line has left; both vendors' clients raise at an event of this name."""
    return "event: error\n" + openai.event(_envelope(request, found))


def _envelope(request: Request, found: Problem) -> dict[str, Json]:
    if not speaks_anthropic(request):
        return openai.error_json(found.message, status=found.status, param=found.param, code=found.code)
    kind = "api_error" if found.status >= 500 else "invalid_request_error"
    param = (found.param or "").replace(".function.parameters", ".input_schema").replace(".function.name", ".name")
    message = found.message if param in found.message else f"{param}: {found.message}"  # it has no field of its own
    if found.sizes is not None:  # Claude Code reads these words and compacts its conversation
        message = "prompt is too long: {} tokens > {} maximum".format(*found.sizes)
    error = {"type": _ANTHROPIC_TYPE.get(402 if found.spent else found.status, kind), "message": message}
    return {"type": "error", "error": error, "request_id": request.state.request_id}
