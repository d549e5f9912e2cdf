"""Anthropic's messages: body -> ChatRequest.

A field that we cannot honour is refused by name; accepted and without effect is only what leaves the answer as the API
means it:

- `cache_control`, `metadata`, `user_profile_id`, `workspace_id`: books and hints; prefixes are found by themselves;
- `thinking` disabled or adaptive: the model may think and never does. `enabled` asks for thoughts and is refused;
- `output_config.effort`: how much to say, as far as a model knows how;
- `context_management` with clear_thinking: no thinking of the history is ever sent to the model;
- `anthropic-beta` and `anthropic-version`: headers about fields, and the fields are checked.

`temperature` is Anthropic's, from 0 to 1. K2 gets 0.6 times that, as from Moonshot's own Anthropic endpoint, so that
the default of 1.0 is the 0.6 that K2 was tuned for (README of Kimi-K2).

Source: docs.anthropic.com/en/api/messages; tests read the official client's own types.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from baltoro.chat.messages import ChatRequest, Json, Tool, ToolChoice
from baltoro.errors import RequestError
from baltoro.server.anthropic_blocks import CacheControl, MessageBody, Text, messages, system_messages
from baltoro.server.body import Strict, only
from baltoro.server.formats import MessageFormat

TEMPERATURE_SCALE = 0.6  # K2's temperature over Anthropic's

_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


def _no_server_tool(value: Any) -> Any:
    """Tools with a type of their own run at Anthropic, or have schemas that only Claude knows."""
    tool = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    if tool.get("type") not in (None, "custom"):
        raise PydanticCustomError(
            "unsupported_value",
            "'{kind}' is a tool of Anthropic's own and not supported; leave it out, or declare it with an input_schema",
            {"kind": str(tool["type"])},
        )
    return cast(Any, value)


class ToolBody(Strict):
    type: Literal["custom"] | None = None
    name: _Name
    description: str | None = None
    input_schema: dict[str, Json]
    cache_control: CacheControl = None
    strict: bool | None = None  # arguments always follow the schema; true: even where schemas may be loose
    eager_input_streaming: bool | None = None  # and are told as they come
    input_examples: Annotated[Json, only([])] = None
    defer_loading: Annotated[Json, only(False)] = None
    allowed_callers: Annotated[Json, only(["direct"])] = None

    def tool(self) -> Tool:
        function: dict[str, Json] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.input_schema
        declaration = {"type": "function", "function": function}
        return Tool(name=self.name, parameters=self.input_schema, declaration=declaration, strict=bool(self.strict))


class Choice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def _thinks_not(value: Json) -> Json:
    if value not in ("disabled", "adaptive"):
        raise PydanticCustomError(
            "unsupported_value", "the model does not think before it answers; expected 'disabled' or 'adaptive'"
        )
    return value


class Thinking(Strict):
    type: Annotated[Json, AfterValidator(_thinks_not)]
    display: Literal["summarized", "omitted"] | None = None
    budget_tokens: Annotated[Json, only()] = None  # of enabled


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: MessageFormat | None = None
    task_budget: Annotated[Json, only()] = None


class Edit(Strict):
    type: Literal["clear_thinking_20251015"]
    keep: Json = None


class ContextManagement(Strict):
    edits: list[Edit] | None = None


class Metadata(Strict):
    user_id: str | None = None


class PromptBody(Strict):
    """What POST /v1/messages/count_tokens takes, and POST /v1/messages too."""

    model: str
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    system: Text | None = None
    tools: list[Annotated[ToolBody, BeforeValidator(_no_server_tool)]] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    cache_control: CacheControl = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    # Honoured at these values alone.
    billing_policy: Annotated[Json, only()] = None
    compaction: Annotated[Json, only()] = None
    mcp_servers: Annotated[Json, only([])] = None
    output_format: Annotated[Json, only(instead="send output_config.format")] = None
    speed: Annotated[Json, only("standard")] = None


class MessagesBody(PromptBody):
    """What POST /v1/messages takes."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None  # 0: no limit
    metadata: Metadata | None = None
    # Honoured at these values alone.
    service_tier: Annotated[Json, only("auto", "standard_only")] = None
    container: Annotated[Json, only()] = None
    diagnostics: Annotated[Json, only()] = None
    fallback_credit_token: Annotated[Json, only()] = None
    fallbacks: Annotated[Json, only([])] = None
    inference_geo: Annotated[Json, only()] = None
    thread: Annotated[Json, only()] = None


def prompt_request(body: PromptBody) -> ChatRequest:
    """The conversation in our own words; raises RequestError where fields contradict each other."""
    tools = _tools(body.tools or [])
    return ChatRequest(
        messages=(*system_messages(body.system), *messages(body.messages)),
        tools=tools,
        tool_choice=_tool_choice(body.tool_choice, tools),
        parallel_tool_calls=body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use,
    )


def chat_request(body: MessagesBody) -> ChatRequest:
    """Anthropic's max_tokens is a bound: where the context ends before it, the answer says so when it gets there."""
    given: dict[str, Any] = {
        "temperature": None if body.temperature is None else body.temperature * TEMPERATURE_SCALE,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": tuple(body.stop_sequences or ()),
    }
    wishes = {name: value for name, value in given.items() if value is not None}
    config = body.output_config
    return replace(
        prompt_request(body),
        answer_format=config.format.wanted() if config and config.format else None,
        max_tokens=body.max_tokens,
        clip_max_tokens=True,
        tell_prompt=True,
        noted={} if body.metadata is None else {"metadata": body.metadata.model_dump(exclude_none=True)},
        **wishes,
    )


def _tools(bodies: list[ToolBody]) -> tuple[Tool, ...]:
    seen: set[str] = set()
    for at, body in enumerate(bodies):
        if body.name in seen:
            where = f"tools[{at}].name"
            raise RequestError(f"{where} declares '{body.name}' a second time", param=where, code="invalid_value")
        seen.add(body.name)
    return tuple(body.tool() for body in bodies)


def _tool_choice(choice: Choice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    if choice is not None and choice.name is not None and choice.type != "tool":
        raise RequestError(
            f"tool_choice.name is {choice.name!r} and its type '{choice.type}', expected type 'tool' with a name",
            param="tool_choice.name",
        )
    if choice is None or choice.type == "auto":
        return ToolChoice()
    if choice.type == "none":
        return ToolChoice(mode="none")
    names = [tool.name for tool in tools]
    if choice.type == "tool" and choice.name not in names:
        raise RequestError(
            f"tool_choice.name is {choice.name!r}, expected a declared tool",
            hint=f"declared: {', '.join(names) or 'none'}",
            param="tool_choice.name",
        )
    if not tools:
        raise RequestError("tool_choice is 'any' and no tools are declared", param="tool_choice")
    return ToolChoice(mode="named", name=choice.name) if choice.type == "tool" else ToolChoice(mode="required")
