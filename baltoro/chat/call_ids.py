"""Any client's tool-call ids -> `functions.NAME:IDX`, the only form that K2 was trained on.

IDX counts calls from 0 over the whole conversation. Histories with other ids make the model leak markers or stop
without a word, so every history is renumbered before it is rendered; clients' ids are compared and never read.

What clients get wrong, and what becomes of it:
- results in another order than the calls: kept as sent, each names its call;
- a call without a result: kept, it counts (a user may interrupt a tool);
- an id used again in a later turn: a result belongs to the nearest call before it;
- an id used twice in one turn: the results answer these calls in turn, the last call takes what is left;
- a result whose call is not in the history: refused, the model cannot be told what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baltoro.chat.messages import Message
from baltoro.errors import RequestError


def canonical_id(name: str, index: int) -> str:
    return f"functions.{name}:{index}"


def canonicalize(messages: Sequence[Message]) -> tuple[list[Message], int]:
    """The same conversation with K2's ids, and the index of the next call."""
    renamed: list[Message] = []
    waiting: dict[str, list[str]] = {}  # client's id -> K2's ids of the last turn that used it, next to answer first
    index = 0
    for position, message in enumerate(messages):
        if message.tool_calls:
            ours = [canonical_id(call.name, index + i) for i, call in enumerate(message.tool_calls)]
            index += len(ours)
            turn: dict[str, list[str]] = {}
            for call, new in zip(message.tool_calls, ours, strict=True):
                turn.setdefault(call.id, []).append(new)
            waiting |= turn
            calls = tuple(replace(call, id=new) for call, new in zip(message.tool_calls, ours, strict=True))
            message = replace(message, tool_calls=calls)
        elif message.role == "tool":
            message = replace(message, tool_call_id=_answered(message.tool_call_id, waiting, position))
        renamed.append(message)
    return renamed, index


def _answered(client_id: str | None, waiting: dict[str, list[str]], position: int) -> str:
    param = f"messages[{position}].tool_call_id"
    ours = waiting.get(client_id or "")
    if not client_id or ours is None:
        known = ", ".join(map(repr, waiting)) or "none, no assistant message before it has tool_calls"
        raise RequestError(
            f"{param} is {client_id!r}, expected the id of a call before it ({known})",
            hint="send the assistant message with its tool_calls before the results",
            param=param,
        )
    return ours.pop(0) if len(ours) > 1 else ours[0]
