"""What `GET /openapi.json` says of answers: every status that a route may have, and its envelope.

FastAPI documents 422 for a body that does not fit; here that is 400, in the dialect of the path.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from baltoro.chat.messages import Json


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenAIProblem(_Closed):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error", "insufficient_quota"]
    param: str | None
    code: str | None


class OpenAIError(_Closed):
    """The envelope of OpenAI's API, and of all paths that no vendor has."""

    error: OpenAIProblem


class AnthropicProblem(_Closed):
    type: Literal[
        "invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error",
        "request_too_large", "rate_limit_error", "api_error", "timeout_error", "overloaded_error",
    ]  # fmt: skip
    message: str


class AnthropicError(_Closed):
    """The envelope of Anthropic's API."""

    type: Literal["error"]
    error: AnthropicProblem
    request_id: str


Responses = dict[int | str, dict[str, Any]]

# A key that is missing or wrong, too many headers, a fault of ours, a database of keys that does not answer.
READING = (401, 431, 500, 503)
# And what a body can be or a model say: see envelopes.py.
ASKING = (400, 403, 404, 408, 413, 429, 504)


def refusals(envelope: Any, *statuses: int) -> Responses:
    return {status: {"model": envelope, "description": HTTPStatus(status).phrase} for status in sorted({*statuses})}


OPENAI = refusals(OpenAIError, *READING, *ASKING)
ANTHROPIC = refusals(AnthropicError, *READING, *ASKING, 402)
EITHER = refusals(OpenAIError | AnthropicError, *READING, 400, 404)  # of paths that both vendors have
OURS = refusals(OpenAIError, *READING)
STREAMED: Responses = {200: {"description": "Whole, or with `stream` as events", "content": {"text/event-stream": {}}}}


def document(app: FastAPI) -> dict[str, Json]:
    found = get_openapi(title=app.title, summary=app.summary, version=app.version, routes=app.routes)
    for operations in found["paths"].values():
        for operation in cast("dict[str, dict[str, Json]]", operations).values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)
    return found
