"""The input of a response -> the turns of a conversation.

OpenAI lists what an assistant said and called as items of their own; K2 knows turns, of text and then calls. So a call
joins the assistant's turn before it, and a result follows as a turn of its own. What a model thought (`reasoning`) is
no part of K2's conversation and dropped; calls of tools that are no functions, made by other models in the same
session, are told as calls of functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, Tag

from baltoro.chat.messages import Json, Message, ToolCall
from baltoro.errors import RequestError
from baltoro.server.body import Strict, by_type, checked

DROPPED = ("reasoning", "web_search_call")  # both say nothing that the turns around them need


class _Part(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Json = None
    logprobs: Json = None
    prompt_cache_breakpoint: Json = None  # a hint; our cache finds prefixes by itself


_Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[_Part], Tag("list")], by_type("a string or a list of text parts")
]


class _Item(Strict):
    """What an item may carry along without telling the model anything."""

    id: str | None = None
    status: str | None = None
    phase: str | None = None
    caller: Json = None


class _Message(_Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content


class _FunctionCall(_Item):
    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None
    arguments: str


class _CustomCall(_Item):
    type: Literal["custom_tool_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None
    input: str


class _CallOutput(_Item):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: _Content
    name: str | None = None
    namespace: str | None = None


def joined(namespace: str | None, name: str) -> str:
    """The name that the model knows a tool of a namespace by."""
    return f"{namespace}.{name}" if namespace else name


@dataclass(slots=True)
class Turns:
    messages: list[Message] = field(default_factory=list[Message])
    places: list[str] = field(default_factory=list[str])  # where the body says each of them, or begins to

    def add(self, message: Message, place: str) -> None:
        self.messages.append(message)
        self.places.append(place)

    def call(self, call: ToolCall, place: str) -> None:
        if self.messages and self.messages[-1].role == "assistant":
            last = self.messages[-1]
            self.messages[-1] = replace(last, tool_calls=(*last.tool_calls, call))
        else:
            self.add(Message(role="assistant", tool_calls=(call,)), place)


def turns(instructions: str | None, given: str | Sequence[dict[str, Json]]) -> Turns:
    found = Turns()
    if instructions is not None:
        found.add(Message(role="system", content=instructions), "instructions")
    if isinstance(given, str):
        found.add(Message(role="user", content=given), "input")
        return found
    for place, item in enumerate(given):
        kind: Json = item.get("type", "message")
        where, told = ("input", place), f"input[{place}]"
        match kind:
            case "message":
                said = checked(_Message, item, *where)
                role = "system" if said.role == "developer" else said.role
                found.add(Message(role=role, content=_content(said.content)), told)
            case "function_call":
                call = checked(_FunctionCall, item, *where)
                name = joined(call.namespace, call.name)
                found.call(ToolCall(id=call.call_id, name=name, arguments=call.arguments), told)
            case "custom_tool_call":
                free = checked(_CustomCall, item, *where)
                arguments = json.dumps({"input": free.input}, ensure_ascii=False)
                name = joined(free.namespace, free.name)
                found.call(ToolCall(id=free.call_id, name=name, arguments=arguments), told)
            case "function_call_output" | "custom_tool_call_output":
                result = checked(_CallOutput, item, *where)
                message = Message(role="tool", content=_content(result.output), tool_call_id=result.call_id)
                found.add(message, told)
            case _ if kind in DROPPED:
                continue
            case _:
                raise RequestError(
                    f"{told}.type is {json.dumps(kind)}: expected message, function_call, "
                    "function_call_output, custom_tool_call, custom_tool_call_output or reasoning",
                    param=f"{told}.type",
                    code="unsupported_value",
                )
    if not found.messages:
        raise RequestError("input has no message", param="input", code="invalid_value")
    return found


def _content(content: str | list[_Part]) -> str | list[dict[str, Json]]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]
