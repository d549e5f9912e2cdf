"""Answers as OpenAI's responses: Deltas -> items, told one by one as events or all at the end.

    message         added, content_part.added, output_text.delta ..., output_text.done, content_part.done, done
    function_call   added, function_call_arguments.delta ..., function_call_arguments.done, done

A whole response is the last event's, so a stream that a client folds says the same.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from baltoro.chat.messages import (
    ArgumentsDelta,
    CallBegun,
    CallEnded,
    ChatRequest,
    Delta,
    Finished,
    FinishReason,
    Json,
    Likelihoods,
    PromptRead,
    TextDelta,
    Usage,
)
from baltoro.errors import BaltoroError, EngineError
from baltoro.server.openai import event
from baltoro.server.openai_writer import token_json
from baltoro.server.responses import ResponseBody
from baltoro.server.responses_tools import Offered

_Event = dict[str, Json]


class Writer:
    """Of one response."""

    def __init__(self, body: ResponseBody, request: ChatRequest, offered: Offered) -> None:
        self._items = _Items(offered, request.logprobs)
        self._response: dict[str, Json] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": request.temperature,
            "text": _text(body),
            "tool_choice": _choice(body),
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    async def whole(self, deltas: AsyncGenerator[Delta]) -> dict[str, Json]:
        last: _Event = {}
        async with aclosing(self._events(deltas)) as events:
            async for each in events:
                last = each
        return last["response"]

    async def events(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[str]:
        """What fails on the way ends the stream with response.failed."""
        number = 0
        try:
            async with aclosing(self._events(deltas)) as events:
                async for each in events:
                    yield _line(each, number)
                    number += 1
        except BaltoroError as error:
            message = f"{error.message} ({error.hint})" if error.hint else error.message
            failed = {"status": "failed", "error": {"code": "server_error", "message": message}}
            response = self._response | {"output": self._items.done} | failed
            yield _line({"type": "response.failed", "response": response}, number)

    async def _events(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[_Event]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": dict(self._response)}
        async with aclosing(deltas):
            async for delta in deltas:
                if isinstance(delta, Finished):
                    for each in self._items.end(delta.reason):
                        yield each
                    yield self._finished(delta)
                    return
                for each in self._items.push(delta):
                    yield each
        raise AssertionError("a stream of Deltas ends with Finished")

    def _finished(self, end: Finished) -> _Event:
        if end.reason == "cancelled":
            raise EngineError("the request was cancelled")
        cut = end.reason == "length"
        status = "incomplete" if cut else "completed"
        self._response |= {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items.done,
            "usage": _usage(end.usage),
        }
        return {"type": f"response.{status}", "response": self._response}


class _Items:
    """The items of a response as they grow. Every method gives the events to tell."""

    def __init__(self, offered: Offered, num_top: int | None) -> None:
        """num_top: likeliest tokens at every place of the text; None: no log-probabilities at all"""
        self.done: list[dict[str, Json]] = []
        self._offered = offered
        self._num_top = num_top
        self._message: dict[str, Json] | None = None  # open: the last of `done`
        self._calls: dict[int, int] = {}  # open ones: their index in the turn -> their place in `done`
        self._tokens: list[Json] = []  # log-probabilities that the next text will tell

    def push(self, delta: Delta) -> list[_Event]:
        match delta:
            case TextDelta():
                return self._say(delta.text)
            case CallBegun():
                return [*self._close_message("completed"), self._begin_call(delta)]
            case ArgumentsDelta():
                place = self._calls[delta.index]
                self.done[place]["arguments"] += delta.text
                return [self._about(place, "response.function_call_arguments.delta", delta=delta.text)]
            case CallEnded():
                place = self._calls.pop(delta.index)
                item = self.done[place]
                item["status"] = "completed"
                arguments: str = item["arguments"]
                return [
                    self._about(place, "response.function_call_arguments.done", arguments=arguments, name=item["name"]),
                    _item_event("response.output_item.done", place, item),
                ]
            case Likelihoods():
                if self._num_top is not None:
                    self._tokens.append(token_json(delta, self._num_top))
                return []
            case PromptRead() | Finished():  # no part of an item
                return []

    def end(self, reason: FinishReason) -> list[_Event]:
        """Close what is open: a call that never ended is incomplete, and so is text that was cut."""
        told = self._close_message("incomplete" if reason in ("length", "cancelled") else "completed")
        for place in self._calls.values():
            self.done[place]["status"] = "incomplete"
            told.append(_item_event("response.output_item.done", place, self.done[place]))
        self._calls.clear()
        return told

    def _say(self, text: str) -> list[_Event]:
        told: list[_Event] = []
        if self._message is None:
            self._message = {"type": "message", "id": _id("msg"), "role": "assistant", "status": "in_progress"}
            self._message["content"] = []
            place = len(self.done)
            self.done.append(self._message)
            told.append(_item_event("response.output_item.added", place, self._message))
            told.append(self._about(place, "response.content_part.added", content_index=0, part=_part()))
            self._message["content"].append(_part())
        open_part = cast("dict[str, Json]", self._message["content"][0])
        open_part["text"] += text
        scores, self._tokens = self._tokens, []
        open_part["logprobs"] += scores
        place = len(self.done) - 1
        told.append(self._about(place, "response.output_text.delta", content_index=0, delta=text, logprobs=scores))
        return told

    def _close_message(self, status: str) -> list[_Event]:
        self._tokens = []  # of a call, or of the end: no text tells them
        if self._message is None:
            return []
        item, self._message = self._message, None
        item["status"] = status
        place, part = len(self.done) - 1, cast("dict[str, Json]", item["content"][0])
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            self._about(place, "response.output_text.done", content_index=0, **text),
            self._about(place, "response.content_part.done", content_index=0, part=dict(part)),
            _item_event("response.output_item.done", place, item),
        ]

    def _begin_call(self, call: CallBegun) -> _Event:
        namespace, name = self._offered.origins.get(call.name, (None, call.name))
        item: dict[str, Json] = {"type": "function_call", "id": _id("fc"), "call_id": call.id, "name": name}
        if namespace is not None:
            item["namespace"] = namespace
        item |= {"arguments": "", "status": "in_progress"}
        place = self._calls[call.index] = len(self.done)
        self.done.append(item)
        return _item_event("response.output_item.added", place, item)

    def _about(self, place: int, kind: str, **what: Json) -> _Event:
        return {"type": kind, "item_id": self.done[place]["id"], "output_index": place, **what}


def _part() -> dict[str, Json]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _item_event(kind: str, place: int, item: dict[str, Json]) -> _Event:
    told = item | {"content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)
    return {"type": kind, "output_index": place, "item": told}


def _line(told: _Event, number: int) -> str:
    return f"event: {told['type']}\n" + event(told | {"sequence_number": number})


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _usage(usage: Usage) -> dict[str, Json]:
    return {
        "input_tokens": usage.prompt_tokens,
        # What was not in the cache is there now, at no price: there is nothing to count as written.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _text(body: ResponseBody) -> dict[str, Json]:
    form = body.text.format if body.text else None
    told = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
    return {"format": told, "verbosity": "medium"}


def _choice(body: ResponseBody) -> Json:
    choice = body.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump(exclude_none=True)
