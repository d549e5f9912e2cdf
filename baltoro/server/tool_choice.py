"""OpenAI's tool_choice: what the model may, must or must not call, as chat completions and responses write it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag

from baltoro.chat.messages import Json, ToolChoice
from baltoro.errors import RequestError
from baltoro.server.body import Strict, checked
from baltoro.server.responses_items import joined

Mode = Literal["none", "auto", "required"]


class ChatFunction(Strict):
    name: str


class ChatNamed(Strict):
    type: Literal["function"]
    function: ChatFunction


class ChatAllowed(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChatNamed], Field(min_length=1)]


class ChatAllowedTools(Strict):
    """All tools stay declared, so that the prompt begins as it did before, and only these may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: ChatAllowed


class ResponseNamed(Strict):
    type: Literal["function"]
    name: str
    namespace: str | None = None


class ResponseAllowedTools(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Json]], Field(min_length=1)]  # those of other types were left out as tools, too


def _form(value: Any) -> str:
    if not isinstance(value, dict):
        return "(mode)" if isinstance(value, str) else ""
    return "(allowed)" if cast("dict[str, Any]", value).get("type") == "allowed_tools" else "(named)"


_BY_FORM = Discriminator(
    _form,
    custom_error_type="invalid_type",
    custom_error_message="expected 'none', 'auto', 'required', a named function or allowed_tools",
)
ChatChoice = Annotated[
    Annotated[Mode, Tag("(mode)")]
    | Annotated[ChatNamed, Tag("(named)")]
    | Annotated[ChatAllowedTools, Tag("(allowed)")],
    _BY_FORM,
]
ResponseChoice = Annotated[
    Annotated[Mode, Tag("(mode)")]
    | Annotated[ResponseNamed, Tag("(named)")]
    | Annotated[ResponseAllowedTools, Tag("(allowed)")],
    _BY_FORM,
]


def of_chat(choice: ChatNamed | ChatAllowedTools | str | None, declared: Collection[str]) -> ToolChoice:
    if isinstance(choice, ChatNamed):
        return _named(choice.function.name, declared)
    if isinstance(choice, ChatAllowedTools):
        allowed = choice.allowed_tools
        return _allowed(allowed.mode, [tool.function.name for tool in allowed.tools], declared)
    return _by_mode(choice, declared)


def of_response(choice: ResponseNamed | ResponseAllowedTools | str | None, declared: Collection[str]) -> ToolChoice:
    """declared: names as the model knows them, with their namespace"""
    if isinstance(choice, ResponseNamed):
        return _named(joined(choice.namespace, choice.name), declared)
    if isinstance(choice, ResponseAllowedTools):
        functions = [
            checked(ResponseNamed, tool, "tool_choice", "tools", place)
            for place, tool in enumerate(choice.tools)
            if tool.get("type", "function") == "function"
        ]
        return _allowed(choice.mode, [joined(each.namespace, each.name) for each in functions], declared)
    return _by_mode(choice, declared)


def _named(name: str, declared: Collection[str]) -> ToolChoice:
    _check(name, declared)
    return ToolChoice(mode="named", name=name)


def _allowed(mode: Literal["auto", "required"], names: Sequence[str], declared: Collection[str]) -> ToolChoice:
    for name in names:
        _check(name, declared)
    if mode == "required" and not names:
        raise RequestError(
            "tool_choice is 'required' and no function is allowed", param="tool_choice", code="invalid_value"
        )
    return ToolChoice(mode=mode, allowed=tuple(names))


def _by_mode(mode: str | None, declared: Collection[str]) -> ToolChoice:
    if mode == "required":
        if not declared:
            raise RequestError(
                "tool_choice is 'required' and no tools are declared", param="tool_choice", code="invalid_value"
            )
        return ToolChoice(mode="required")
    return ToolChoice(mode="none" if mode == "none" else "auto")


def _check(name: str, declared: Collection[str]) -> None:
    if name not in declared:
        raise RequestError(
            f"tool_choice names '{name}', which tools does not declare",
            hint=f"declared: {', '.join(declared) or 'none'}",
            param="tool_choice",
            code="invalid_value",
        )
