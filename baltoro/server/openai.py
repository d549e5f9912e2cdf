"""OpenAI's chat completions: body -> ChatRequest, and the small forms of its answers.

A field that we cannot honour is refused by name, never accepted and ignored; what changes nothing
about the answer (user, metadata, cache hints) is accepted and kept with the request.
Source: platform.openai.com/docs/api-reference/chat; tests read the official client's own types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from baltoro.chat.messages import (
    ChatRequest,
    Json,
    Message,
    Tool,
    ToolCall,
    Usage,
)
from baltoro.errors import RequestError
from baltoro.server import tool_choice, web_search
from baltoro.server.body import Strict, by_type, explain, only
from baltoro.server.formats import ResponseFormat
from baltoro.server.sampling import MaxTokens, SamplingBody, wishes
from baltoro.server.tool_choice import ChatChoice

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Strict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Json = None  # a hint; our cache finds prefixes by itself


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Tag("list")], by_type("a string or a list of text parts")
]


class CalledFunction(Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[
        Annotated[str, Tag("str")] | Annotated[dict[str, Json], Tag("dict")], by_type("JSON text or an object")
    ]


class CallBody(Strict):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function", "builtin_function"] = "function"  # histories from Moonshot have both
    function: CalledFunction
    index: int | None = None  # clients that accumulate a stream send it back


class MessageBody(Strict):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    partial: bool | None = None  # Moonshot's: the answer goes on with this message
    reasoning_content: str | None = None  # what another model thought: K2 has no place for it, and it is dropped
    # Parts of an assistant's message that clients echo, empty as we sent them.
    refusal: Annotated[Json, only()] = None
    audio: Annotated[Json, only()] = None
    function_call: Annotated[Json, only()] = None
    annotations: Annotated[Json, only([])] = None


class FunctionBody(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None  # arguments always follow the schema; true: even where schemas may be loose


class ToolBody(Strict):
    type: Literal["function"]
    function: FunctionBody
    _declaration: Mapping[str, Json] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_declaration(cls, value: Any, handler: ModelWrapValidatorHandler[ToolBody]) -> ToolBody:
        tool = handler(value)
        tool._declaration = value  # the template prints it with the client's own keys and their order
        return tool

    def tool(self) -> Tool:
        function = self.function
        return Tool(
            name=function.name,
            parameters=function.parameters or {},
            declaration=self._declaration,
            strict=bool(function.strict),
        )


class BuiltinFunction(Strict):
    name: str


class BuiltinBody(Strict):
    """Moonshot's tools that its servers run."""

    type: Literal["builtin_function"]
    function: BuiltinFunction


def _kind_of_tool(value: Any) -> str:
    is_builtin = isinstance(value, dict) and cast("dict[str, Any]", value).get("type") == "builtin_function"
    return "(builtin)" if is_builtin else "(function)"


AnyTool = Annotated[
    Annotated[ToolBody, Tag("(function)")] | Annotated[BuiltinBody, Tag("(builtin)")], Discriminator(_kind_of_tool)
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Json, only(False)] = None


class ThinkingBody(Strict):
    """Moonshot's; its own agents always send it."""

    type: Annotated[Json, only("disabled")]
    keep: Json = None  # of thoughts in the history


class ChatBody(SamplingBody):
    """What POST /v1/chat/completions takes."""

    model: str
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    tools: list[AnyTool] | None = None
    tool_choice: ChatChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None  # a bound: up to the context's size, then what the prompt leaves
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None  # of the likeliest tokens at every place
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # For the client's own books: kept with the request, the answer does not depend on them.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Json] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Json] | None = None
    prompt_cache_retention: str | None = None
    # Honoured at these values alone.
    modalities: Annotated[Json, only(["text"])] = None
    audio: Annotated[Json, only()] = None
    prediction: Annotated[Json, only()] = None  # we would not be faster, and could not count what was foreseen
    reasoning_effort: Annotated[Json, only("none")] = None  # Kimi K2 does not reason before it answers
    thinking: ThinkingBody | None = None
    verbosity: Annotated[Json, only("medium")] = None
    service_tier: Annotated[Json, only("auto", "default")] = None
    web_search_options: Annotated[Json, only(instead="declare a tool that searches")] = None
    moderation: Annotated[Json, only()] = None
    # OpenAI's first edition of tools.
    functions: Annotated[Json, only(instead='send tools: [{"type": "function", "function": ...}]')] = None
    function_call: Annotated[Json, only(instead="send tool_choice")] = None


NOTED = (
    "user",
    "safety_identifier",
    "metadata",
    "client_metadata",
    "store",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)


# ----------------------------------------------------------------------------------------- body -> ChatRequest


def check_bound(body: ChatBody, max_context: int) -> None:
    """Agents send the context's size as max_completion_tokens; more than that is a mistake."""
    if body.max_completion_tokens is not None and body.max_completion_tokens > max_context:
        raise RequestError(
            f"max_completion_tokens is {body.max_completion_tokens}, expected at most the context, {max_context}",
            param="max_completion_tokens",
            code="invalid_value",
        )


def chat_request(body: ChatBody, *, searches: bool = False) -> ChatRequest:
    """The request in our own words; raises RequestError where fields contradict each other.

    searches: whether this server runs `$web_search`
    """
    tools = _tools(body.tools or [], searches=searches)
    check_stream_options(body.stream, body.stream_options)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    return ChatRequest(
        messages=tuple(_message(message, f"messages[{at}]") for at, message in enumerate(body.messages)),
        tools=tools,
        tool_choice=tool_choice.of_chat(body.tool_choice, [tool.name for tool in tools]),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        answer_format=body.response_format.wanted() if body.response_format else None,
        clip_max_tokens=body.max_tokens is None,
        noted=noted(body),
        **wishes(body, _max_tokens(body)),
    )


def noted(body: Strict) -> dict[str, Json]:
    """What the client said for its own books."""
    given = {name: getattr(body, name, None) for name in NOTED}
    return {name: value for name, value in given.items() if value is not None}


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    if options is not None and not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")


def wants_usage(options: StreamOptions | None) -> bool:
    return options is not None and bool(options.include_usage)


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            f"max_tokens is {old} and max_completion_tokens is {new}; send one of them",
            param="max_completion_tokens",
            code="invalid_value",
        )
    return new if new is not None else old


def _message(body: MessageBody, where: str) -> Message:
    """What may follow what (results after their calls, calls by assistants only) is checked where ids are renamed."""
    if body.content is None and not body.tool_calls:
        raise RequestError(f"{where} has no content", param=f"{where}.content", code="missing_required_parameter")
    content = body.content
    if isinstance(content, list):
        content = [{"type": part.type, "text": part.text} for part in content]
    calls = [
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in body.tool_calls or ()
    ]
    return Message(
        role="system" if body.role == "developer" else body.role,
        content=content,
        name=body.name,
        tool_calls=tuple(calls),
        tool_call_id=body.tool_call_id,
        partial=bool(body.partial),
    )


def _tools(bodies: Sequence[ToolBody | BuiltinBody], *, searches: bool) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for at, body in enumerate(bodies):
        name = body.function.name
        if name in tools:
            where = f"tools[{at}].function.name"
            raise RequestError(f"{where} declares '{name}' a second time", param=where, code="invalid_value")
        tools[name] = body.tool() if isinstance(body, ToolBody) else _builtin(name, f"tools[{at}]", searches=searches)
    return tuple(tools.values())


def _builtin(name: str, where: str, *, searches: bool) -> Tool:
    if name == web_search.NAME and searches:
        return web_search.TOOL
    hint = "leave it out"
    if name == web_search.NAME:
        hint = f"`baltoro serve --web-search MODULE:FUNCTION` runs it, or {hint}"
    raise RequestError(
        f"{where}: the builtin_function '{name}' runs on Moonshot's servers, and this one has nothing in its place",
        hint=hint,
        param=where,
        code="unsupported_value",
    )


def read_tools(document: Json) -> tuple[Tool, ...]:
    """Tools from a file, as a request declares them."""
    try:
        return _tools(TypeAdapter(list[ToolBody]).validate_python(document), searches=False)
    except ValidationError as error:
        raise explain([{**each, "loc": ("body", "tools", *each["loc"])} for each in error.errors()]) from error


# ---------------------------------------------------------------------------------------------- words -> JSON


def usage_json(usage: Usage) -> dict[str, Json]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def event(data: Json) -> str:
    """One server-sent event on one `data:` line: JSON text has no raw line breaks.

    Many clients split lines as Unicode does, at U+0085, U+2028 and U+2029 too, which JSON leaves raw.
    """
    text = json.dumps(data, ensure_ascii=False)
    text = text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"data: {text}\n\n"


def error_json(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Json]:
    """OpenAI's envelope. The official client chooses its exception by the status, not by `type`."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    kind = code if code == "insufficient_quota" else kind
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
