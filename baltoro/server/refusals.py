"""What is answered to whom may not, or not now: in the envelope of the dialect that was spoken.

A budget that is used up is 429 insufficient_quota at OpenAI and 402 billing_error at Anthropic; so it is here. Both
vendors' clients ask again after a 429 unless `x-should-retry` tells them not to.
"""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from baltoro.chat.messages import Json
from baltoro.errors import AccessError, BaltoroError, QueueFull, SpentError

_ANTHROPIC = {401: "authentication_error", 402: "billing_error", 403: "permission_error", 429: "rate_limit_error"}


def answer(request: Request, error: AccessError) -> Response:
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    status, budget = error.status, isinstance(error, SpentError) and error.limit == "budget"
    if _speaks_anthropic(request):
        status = 402 if budget else status
        told: Json = {"type": _ANTHROPIC[status], "message": message}
        body: Json = {"type": "error", "error": told, "request_id": request.state.request_id}
    else:
        kind = "insufficient_quota" if budget else "rate_limit_error" if status == 429 else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": error.code}}
    return JSONResponse(body, status, _headers(error))


def reason(error: BaltoroError) -> str | None:
    """Which limit was met, for who counts: key, model, a limit of the key, the queue; None: none of them."""
    if isinstance(error, SpentError):
        return error.limit
    if isinstance(error, AccessError):
        return "key" if error.status == 401 else "model"
    return "queue" if isinstance(error, QueueFull) else None


def _headers(error: AccessError) -> dict[str, str]:
    if not isinstance(error, SpentError):
        return {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is None:
        return {"x-should-retry": "false"}
    return {"retry-after": str(error.retry_after_s)}


def _speaks_anthropic(request: Request) -> bool:
    """Both vendors have /v1/models; a header tells them apart."""
    path = request.url.path
    asked_by_anthropic = path.startswith("/v1/models") and "anthropic-version" in request.headers
    return asked_by_anthropic or path == "/v1/messages" or path.startswith("/v1/messages/")
