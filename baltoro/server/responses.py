"""OpenAI's responses: body -> ChatRequest. Stateless: nothing is stored, a conversation comes whole every time.

Source: platform.openai.com/docs/api-reference/responses; tests read the official client's own types.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, Tag

from baltoro.chat.messages import ChatRequest, Json
from baltoro.errors import RequestError
from baltoro.server import tool_choice
from baltoro.server.body import Strict, by_type, only
from baltoro.server.formats import TextFormat
from baltoro.server.openai import noted
from baltoro.server.responses_items import turns
from baltoro.server.responses_tools import Offered, offered
from baltoro.server.sampling import MaxTokens
from baltoro.server.tool_choice import ResponseChoice

LOGPROBS = "message.output_text.logprobs"

_Input = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[dict[str, Json]], Tag("list")], by_type("a string or a list of items")
]


class _Text(Strict):
    format: TextFormat | None = None
    verbosity: Annotated[Json, only("medium")] = None


class _Reasoning(Strict):
    """Kimi K2 does not reason before it answers, so there is nothing to sum up either."""

    effort: Annotated[Json, only("none")] = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: Annotated[Json, only("standard")] = None


class _StreamOptions(Strict):
    include_obfuscation: Annotated[Json, only(False)] = None


class ResponseBody(Strict):
    """What POST /v1/responses takes."""

    model: str
    input: _Input
    instructions: str | None = None
    tools: list[dict[str, Json]] | None = None
    tool_choice: ResponseChoice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None  # further parts of items that are never made here, and log-probabilities
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # of tools that the server runs: there are none
    reasoning: _Reasoning | None = None
    # For the client's own books: kept with the request, the answer does not depend on them.
    metadata: dict[str, str] | None = None
    client_metadata: dict[str, Json] | None = None  # Codex's
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Json] | None = None
    prompt_cache_retention: str | None = None
    # Honoured at these values alone.
    store: Annotated[Json, only(False)] = None  # left out, OpenAI stores; here nobody can ask for it later
    previous_response_id: Annotated[Json, only(instead="send the whole conversation as input")] = None
    conversation: Annotated[Json, only(instead="send the whole conversation as input")] = None
    prompt: Annotated[Json, only(instead="send its text as instructions")] = None
    truncation: Annotated[Json, only("disabled")] = None
    background: Annotated[Json, only(False)] = None
    background_options: Annotated[Json, only()] = None
    context_management: Annotated[Json, only()] = None
    service_tier: Annotated[Json, only("auto", "default")] = None
    moderation: Annotated[Json, only()] = None
    image: Annotated[Json, only()] = None
    access_programs: Annotated[Json, only()] = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A body in our own words."""

    request: ChatRequest
    offered: Offered
    places: list[str]  # where the body says each message

    def told(self, error: RequestError) -> RequestError:
        """What the model refuses, with the names that the fields have in a response's body."""

        def place(found: re.Match[str]) -> str:
            kind, index, field = found[1], int(found[2]), found[3] or ""
            places = self.places if kind == "messages" else self.offered.places
            if index >= len(places):  # no field's name, but some text of the client's
                return found[0]
            return places[index] + field.replace(".tool_call_id", ".call_id").removeprefix(".function")

        def words(text: str) -> str:
            text = re.sub(r"\b(messages|tools)\[([0-9]{1,9})\](\.tool_call_id|\.function)?", place, text)
            return re.sub(r"\bmax_tokens\b", "max_output_tokens", text)

        renamed = copy(error)
        renamed.message, renamed.hint = words(error.message), words(error.hint)
        renamed.param = "input" if error.param == "messages" else words(error.param) if error.param else None
        return renamed


def asked(body: ResponseBody) -> Asked:
    found = offered(body.tools or [])
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")
    scored = LOGPROBS in (body.include or ())
    if body.top_logprobs and not scored:
        raise RequestError(f'top_logprobs needs include: ["{LOGPROBS}"]', param="top_logprobs", code="invalid_value")
    wishes: dict[str, Json] = {
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
    }
    said = turns(body.instructions, body.input)
    request = ChatRequest(
        messages=tuple(said.messages),
        tools=tuple(found.tools),
        tool_choice=tool_choice.of_response(body.tool_choice, found.origins),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        answer_format=body.text.format.wanted() if body.text and body.text.format else None,
        logprobs=(body.top_logprobs or 0) if scored else None,
        noted=noted(body),
        **{name: value for name, value in wishes.items() if value is not None},
    )
    return Asked(request, found, said.places)
