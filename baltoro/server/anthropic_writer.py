"""Answers in Anthropic's form: Deltas -> one message or its events.

A stream is message_start (with what the prompt costs, which is known once it was read), each block's start, pieces and
stop, message_delta with the reason and the whole usage, message_stop. `input_tokens` leaves out what came from the
cache. Ids of calls match ^[a-zA-Z0-9_-]+$ and are unique over all conversations; what they name in K2's numbering is
found again by their place in the history (`chat/call_ids.py`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator

from pydantic_core import from_json

from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    Delta,
    Finished,
    Json,
    Likelihoods,
    PromptRead,
    TextDelta,
    Usage,
)
from baltoro.errors import EngineError
from baltoro.server.openai import event

PING_S = 10.0  # a long prompt is read in minutes; proxies and clients close a connection that is silent


class Writer:
    """Writes one answer: whole, or as the events of a stream. Both say the same when a client folds the stream."""

    def __init__(self, model: str, max_tokens: int) -> None:
        """max_tokens: as asked for; an answer that ends before it for its length has filled the context"""
        self.id = f"msg_{uuid.uuid4().hex}"
        self.model = model
        self.max_tokens = max_tokens

    async def whole(self, deltas: AsyncGenerator[Delta]) -> dict[str, Json]:
        content: list[dict[str, Json]] = []
        calls: dict[int, tuple[dict[str, Json], list[str]]] = {}  # index -> block and pieces of its arguments
        async for delta in deltas:
            match delta:
                case TextDelta():
                    if not content or content[-1]["type"] != "text":
                        content.append({"type": "text", "text": ""})
                    content[-1]["text"] += delta.text
                case CallBegun():
                    content.append(self._call(delta))
                    calls[delta.index] = content[-1], []
                case ArgumentsDelta():
                    calls[delta.index][1].append(delta.text)
                case Finished():
                    for block, pieces in calls.values():
                        block["input"] = _arguments("".join(pieces))
                    return self._message(content, delta.usage) | self._end(delta)
                case PromptRead() | CallEnded() | Likelihoods():
                    pass
        raise AssertionError("a stream of Deltas ends with Finished")

    async def events(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[str]:
        """To be read to the end or closed; the source of the deltas is closed by whoever made it."""
        opened = -1  # blocks begun so far, less one
        kind: str | None = None  # of the block that is open
        begun = False
        async for delta in _with_pings(deltas):
            if delta is None:
                yield _event({"type": "ping"})
                continue
            if isinstance(delta, PromptRead | Finished) and not begun:
                begun = True
                yield _event({"type": "message_start", "message": self._message([], delta.usage)})
            assert begun, "a stream of Deltas begins with PromptRead when it was asked for"
            starts = isinstance(delta, CallBegun) or (isinstance(delta, TextDelta) and kind != "text")
            if kind is not None and (starts or isinstance(delta, CallEnded | Finished)):
                yield _event({"type": "content_block_stop", "index": opened})
                kind = None
            if starts:
                block = self._call(delta) if isinstance(delta, CallBegun) else {"type": "text", "text": ""}
                opened, kind = opened + 1, block["type"]
                yield _event({"type": "content_block_start", "index": opened, "content_block": block})
            match delta:
                case TextDelta():
                    yield _piece(opened, {"type": "text_delta", "text": delta.text})
                case ArgumentsDelta():
                    yield _piece(opened, {"type": "input_json_delta", "partial_json": delta.text})
                case Finished():
                    yield _event({"type": "message_delta", "delta": self._end(delta), "usage": _usage(delta.usage)})
                case PromptRead() | CallBegun() | CallEnded() | Likelihoods():
                    pass
        yield _event({"type": "message_stop"})

    def _message(self, content: list[dict[str, Json]], usage: Usage) -> dict[str, Json]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _call(self, begun: CallBegun) -> dict[str, Json]:
        name = f"toolu_{self.id.removeprefix('msg_')}_{begun.index}"
        return {"type": "tool_use", "id": name, "name": begun.name, "input": {}}

    def _end(self, finished: Finished) -> dict[str, Json]:
        match finished.reason:
            case "stop":
                reason = "end_turn" if finished.stop is None else "stop_sequence"
            case "tool_calls":
                reason = "tool_use"
            case "length":
                filled = finished.usage.completion_tokens < self.max_tokens
                reason = "model_context_window_exceeded" if filled else "max_tokens"
            case "cancelled":  # by us, as the client is still there
                raise EngineError("the answer was cancelled before it was whole")
        return {"stop_reason": reason, "stop_sequence": finished.stop}


async def _with_pings(deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta | None]:
    """The deltas, and None whenever the first of them lets wait."""
    first = asyncio.ensure_future(anext(deltas))
    try:
        while not (await asyncio.wait({first}, timeout=PING_S))[0]:
            yield None
        yield first.result()
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    async for delta in deltas:
        yield delta


def _arguments(text: str) -> dict[str, Json]:
    """Of a call that was cut off, what was whole of them: as Anthropic's client reads a stream."""
    try:
        return from_json(text or "{}", allow_partial=True)
    except ValueError as error:
        raise EngineError(f"the model wrote arguments that are not JSON: {error}") from error


def _usage(usage: Usage) -> dict[str, Json]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,  # the cache fills itself and costs nothing
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _piece(index: int, delta: dict[str, Json]) -> str:
    return _event({"type": "content_block_delta", "index": index, "delta": delta})


def _event(data: dict[str, Json]) -> str:
    return f"event: {data['type']}\n{event(data)}"
