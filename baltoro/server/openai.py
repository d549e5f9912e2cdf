"""OpenAI's chat completions: body -> ChatRequest, Deltas -> one JSON object or server-sent events.

A field that we cannot honour is refused by name, never accepted and ignored; what changes nothing
about the answer (user, metadata, cache hints) is accepted.
Source: platform.openai.com/docs/api-reference/chat; tests read the official client's own types.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, Tag, TypeAdapter, ValidationError, model_validator

from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Delta,
    Finished,
    Json,
    Message,
    TextDelta,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from baltoro.errors import RequestError
from baltoro.server.body import Strict, by_type, explain, only

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=2**31)]  # vLLM's and SGLang's extension; 0: no limit
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MaxTokens = Annotated[int, Field(ge=1, le=2**31)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopText, Tag("str")] | Annotated[list[StopText], Field(max_length=4), Tag("list")],
    by_type("a string or a list of at most 4 strings"),
]


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
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that accumulate a stream send it back


class MessageBody(Strict):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    # Parts of an assistant's message that clients echo, empty as we sent them.
    refusal: Annotated[Json, only()] = None
    audio: Annotated[Json, only()] = None
    function_call: Annotated[Json, only()] = None
    annotations: Annotated[Json, only([])] = None


class FunctionBody(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None  # arguments always follow the schema


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
        return Tool(name=self.function.name, parameters=self.function.parameters or {}, declaration=self._declaration)


class NamedFunction(Strict):
    name: str


class NamedChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")] | Annotated[NamedChoice, Tag("dict")],
    by_type("'none', 'auto', 'required' or a named function"),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Json, only(False)] = None


class ChatBody(Strict):
    """What POST /v1/chat/completions takes."""

    model: str
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    tools: list[ToolBody] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted, because the answer does not depend on them.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Json] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Json] | None = None
    prompt_cache_retention: str | None = None
    # Honoured at these values alone.
    n: Annotated[Json, only(1)] = None
    frequency_penalty: Annotated[Json, only(0)] = None
    presence_penalty: Annotated[Json, only(0)] = None
    logit_bias: Annotated[Json, only({})] = None
    logprobs: Annotated[Json, only(False)] = None
    top_logprobs: Annotated[Json, only(0)] = None
    response_format: Annotated[Json, only({"type": "text"})] = None
    modalities: Annotated[Json, only(["text"])] = None
    audio: Annotated[Json, only()] = None
    prediction: Annotated[Json, only()] = None
    reasoning_effort: Annotated[Json, only("none")] = None
    verbosity: Annotated[Json, only("medium")] = None
    service_tier: Annotated[Json, only("auto", "default")] = None
    store: Annotated[Json, only(False)] = None
    web_search_options: Annotated[Json, only()] = None
    moderation: Annotated[Json, only()] = None
    functions: Annotated[Json, only()] = None  # OpenAI's first edition of tools
    function_call: Annotated[Json, only()] = None


# ----------------------------------------------------------------------------------------- body -> ChatRequest


def chat_request(body: ChatBody) -> ChatRequest:
    """The request in our own words; raises RequestError where fields contradict each other."""
    given: dict[str, Any] = {
        "max_tokens": _max_tokens(body),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    tools = _tools(body.tools or [])
    check_stream_options(body.stream, body.stream_options)
    return ChatRequest(
        messages=tuple(_message(message, f"messages[{at}]") for at, message in enumerate(body.messages)),
        tools=tools,
        tool_choice=_tool_choice(body.tool_choice, tools),
        stop=stop_texts(body.stop),
        **{name: value for name, value in given.items() if value is not None},
    )


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


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
    )


def _tools(bodies: list[ToolBody]) -> tuple[Tool, ...]:
    seen: set[str] = set()
    for at, body in enumerate(bodies):
        name = body.function.name
        if name in seen:
            where = f"tools[{at}].function.name"
            raise RequestError(f"{where} declares '{name}' a second time", param=where, code="invalid_value")
        seen.add(name)
    return tuple(body.tool() for body in bodies)


def read_tools(document: Json) -> tuple[Tool, ...]:
    """Tools from a file, as a request declares them."""
    try:
        return _tools(TypeAdapter(list[ToolBody]).validate_python(document))
    except ValidationError as error:
        raise explain([{**each, "loc": ("body", "tools", *each["loc"])} for each in error.errors()]) from error


def _tool_choice(choice: str | NamedChoice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    names = [tool.name for tool in tools]
    if isinstance(choice, NamedChoice):
        if choice.function.name not in names:
            raise RequestError(
                f"tool_choice names '{choice.function.name}', which tools does not declare",
                hint=f"declared: {', '.join(names) or 'none'}",
                param="tool_choice",
                code="invalid_value",
            )
        return ToolChoice(mode="named", name=choice.function.name)
    if choice == "required":
        if not tools:
            raise RequestError(
                "tool_choice is 'required' and no tools are declared", param="tool_choice", code="invalid_value"
            )
        return ToolChoice(mode="required")
    return ToolChoice(mode="none" if choice == "none" else "auto")


# ---------------------------------------------------------------------------------------------- Deltas -> JSON


def usage_json(usage: Usage) -> dict[str, Json]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Writer:
    """Writes one answer: whole, or as the events of a stream. Both say the same when a client folds the stream."""

    def __init__(self, model: str, fingerprint: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.fingerprint = fingerprint

    def _envelope(self, kind: str, choices: list[Json]) -> dict[str, Json]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict[str, Json]:
        text: list[str] = []
        calls: list[dict[str, Json]] = []
        async for delta in deltas:
            match delta:
                case TextDelta():
                    text.append(delta.text)
                case CallBegun():
                    calls.append(
                        {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}}
                    )
                case ArgumentsDelta():
                    calls[delta.index]["function"]["arguments"] += delta.text
                case CallEnded():
                    pass
                case Finished():
                    message: dict[str, Json] = {"role": "assistant", "content": "".join(text), "refusal": None}
                    if calls:
                        message |= {"content": message["content"] or None, "tool_calls": calls}
                    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": delta.reason}
                    return self._envelope("chat.completion", [choice]) | {"usage": usage_json(delta.usage)}
        raise AssertionError("a stream of Deltas ends with Finished")

    async def events(self, deltas: AsyncIterator[Delta], *, include_usage: bool) -> AsyncGenerator[str]:
        begun = False
        async for delta in deltas:
            piece: dict[str, Json] = {}
            match delta:
                case TextDelta():
                    piece = {"content": delta.text}
                case CallBegun():
                    function: dict[str, Json] = {"name": delta.name, "arguments": ""}
                    piece = {
                        "tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]
                    }
                case ArgumentsDelta():
                    piece = {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
                case CallEnded():
                    continue
                case Finished():
                    pass
            if not begun:  # OpenAI's first chunk: the role, and null content where the answer starts with a call
                begun = True
                first = {"role": "assistant", "content": None if isinstance(delta, CallBegun) else "", "refusal": None}
                yield self._event(first, None, include_usage)
            yield self._event(piece, delta.reason if isinstance(delta, Finished) else None, include_usage)
            if isinstance(delta, Finished) and include_usage:
                last = self._envelope("chat.completion.chunk", []) | {"usage": usage_json(delta.usage)}
                yield event(last)
        yield "data: [DONE]\n\n"

    def _event(self, piece: dict[str, Json], finish_reason: str | None, include_usage: bool) -> str:
        choice = {"index": 0, "delta": piece, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._envelope("chat.completion.chunk", [choice])
        return event(chunk | {"usage": None} if include_usage else chunk)


def event(data: Json) -> str:
    """One server-sent event on one `data:` line: JSON text has no raw line breaks.

    Many clients split lines as Unicode does, at U+0085, U+2028 and U+2029 too, which JSON leaves raw.
    """
    text = json.dumps(data, ensure_ascii=False)
    text = text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"data: {text}\n\n"


def error_json(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Json]:
    """OpenAI's envelope. The official client chooses its exception by the status, not by `type`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
