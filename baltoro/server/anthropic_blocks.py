"""Anthropic's content blocks: JSON -> the messages that K2's template knows.

One message of theirs may be several of ours: each tool_result is a turn of its own, in the order sent. Thinking in the
history is dropped, as K2 has no place for it. What the model cannot read (images, documents) or what belongs to
Anthropic's own servers is refused by the name of its type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from baltoro.chat.messages import Json, Message, ToolCall
from baltoro.errors import RequestError
from baltoro.server.body import Strict, by_type, only

CacheControl = dict[str, Json] | None  # a hint; our cache finds prefixes by itself

# The first line of Claude Code is for Anthropic's books, and in some versions a hash there changes with every request:
# left in, no prompt begins like the one before it.
_HEADER_LINES = re.compile(r"\A(?:x-anthropic-[a-z-]+:[^\n]*(?:\n+|\Z))+")


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl = None
    citations: Annotated[Json, only([])] = None


def _kinds(*expected: str) -> BeforeValidator:
    """Refuse a block by its type before its fields are looked at."""

    def check(value: Any) -> Any:
        kind: Any = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError("invalid_type", "expected a content block with a type")
        if kind not in expected:
            raise PydanticCustomError(
                "unsupported_value",
                "'{kind}' blocks are not supported here, the model reads text; expected {expected}",
                {"kind": kind, "expected": " or ".join(expected)},
            )
        return cast(Any, value)

    return BeforeValidator(check)


Text = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[Annotated[TextBlock, _kinds("text")]], Tag("list")],
    by_type("a string or a list of text blocks"),
]


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Strict):
    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Json]
    cache_control: CacheControl = None
    caller: Annotated[Json, only({"type": "direct"})] = None
    toolset_name: Annotated[Json, only()] = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: Text | None = None
    is_error: bool | None = None
    cache_control: CacheControl = None
    toolset_name: Annotated[Json, only()] = None


Block = Annotated[  # `explain` leaves tags in parentheses out of the name of a field
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    Discriminator(lambda value: f"({value['type']})"),
    _kinds("text", "tool_use", "tool_result", "thinking", "redacted_thinking"),
]
Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[Block], Tag("list")], by_type("a string or a list of content blocks")
]


class MessageBody(Strict):
    role: Literal["user", "assistant", "system"]
    content: Content


# -------------------------------------------------------------------------------------------- blocks -> messages


def system_messages(system: Text | None) -> list[Message]:
    """The system prompt as a message, or none where nothing of it is left."""
    if system is None:
        return []
    parts = [system] if isinstance(system, str) else [block.text for block in system]
    texts = [text for text in (_HEADER_LINES.sub("", part) for part in parts) if text]
    return [Message(role="system", content=_parts(texts))] if texts else []


def messages(bodies: Sequence[MessageBody]) -> list[Message]:
    """The conversation. A last message of the assistant stays open: the answer goes on with it."""
    turns: list[Message] = []
    called: set[str] = set()
    for at, body in enumerate(bodies):
        where = f"messages[{at}]"
        blocks = [TextBlock(type="text", text=body.content)] if isinstance(body.content, str) else body.content
        if body.role == "assistant":
            turns += _assistant(blocks, where, called, is_last=at == len(bodies) - 1)
        elif body.role == "system":
            _refuse_others(blocks, (TextBlock,), body.role, where)
            turns += system_messages([block for block in blocks if isinstance(block, TextBlock)])
        else:
            turns += _user(blocks, where, called)
    if not turns:
        raise RequestError("messages has nothing to answer, expected a user's message", param="messages")
    return turns


def _user(blocks: Sequence[Block], where: str, called: set[str]) -> list[Message]:
    _refuse_others(blocks, (TextBlock, ToolResultBlock), "user", where)
    if not blocks:
        raise RequestError(f"{where}.content is empty, expected at least one block", param=f"{where}.content")
    turns: list[Message] = []
    texts: list[str] = []
    for at, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolResultBlock):
            if block.tool_use_id not in called:
                param = f"{where}.content[{at}].tool_use_id"
                raise RequestError(
                    f"{param} is '{block.tool_use_id}', expected the id of a tool_use block before it",
                    hint="send the assistant's message with its tool_use blocks before their results",
                    param=param,
                )
            turns += _said(texts)
            texts = []
            turns.append(Message(role="tool", tool_call_id=block.tool_use_id, content=_result(block)))
    return turns + _said(texts)


def _said(texts: list[str]) -> list[Message]:
    return [Message(role="user", content=_parts(texts))] if texts else []


def _result(block: ToolResultBlock) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    told = text.lstrip("<").casefold().startswith(("error", "tool_use_error"))
    return f"Error: {text}" if block.is_error and not told else text  # K2 has no other place to say so


def _assistant(blocks: Sequence[Block], where: str, called: set[str], *, is_last: bool) -> list[Message]:
    _refuse_others(blocks, (TextBlock, ToolUseBlock, ThinkingBlock, RedactedThinkingBlock), "assistant", where)
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    calls = tuple(
        ToolCall(id=block.id, name=block.name, arguments=block.input)
        for block in blocks
        if isinstance(block, ToolUseBlock)
    )
    called.update(call.id for call in calls)
    if is_last and calls:
        raise RequestError(
            f"{where} ends the conversation with a tool_use block, expected its tool_result in a user's message",
            param=where,
        )
    text = _parts(texts)
    if is_last and text != text.rstrip():
        raise RequestError(
            f"{where} is to be continued and ends in white space, expected none there",  # as Anthropic has it
            hint="no token begins behind a blank; the answer brings its own",
            param=f"{where}.content",
        )
    if not texts and not calls and not is_last:
        return []  # nothing but thinking
    return [Message(role="assistant", content=text, tool_calls=calls, partial=is_last)]


def _refuse_others(blocks: Sequence[Block], known: tuple[type[Strict], ...], role: str, where: str) -> None:
    for at, block in enumerate(blocks):
        if not isinstance(block, known):
            param = f"{where}.content[{at}]"
            raise RequestError(f"{param} is a '{block.type}' block, which a {role} message cannot have", param=param)


def _parts(texts: Sequence[str]) -> str:
    """Blocks stand behind each other as the template joins parts: with nothing between them."""
    return "".join(texts)
