"""Streamed equals whole: the same seed at temperature 0, asked both ways. The pieces put together are the answer.

An endpoint whose answers change from one time to the next, as they do where batches change sums, is asked twice in one
piece first: then nothing can be told of its streams but their form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from baltoro.eval.document import at, listed, text_at
from baltoro.eval.endpoint import Endpoint, Reply
from baltoro.eval.verify.calls import whole
from baltoro.eval.verify.check import CLOCK, WEATHER, Check, asking, found, said, unanswered

Json = Any
SUITE = "stream"
_GREEDY = {"temperature": 0, "seed": 7, "max_tokens": 200}
_CASES: Mapping[str, Mapping[str, Json]] = {
    "text": {"messages": asking("Who are you?"), "max_tokens": 60},
    "text in several scripts": {"messages": asking("Say hello in Chinese and with an emoji."), "max_tokens": 60},
    "stop string": {"messages": asking("Count from one to ten."), "stop": ["five", "5", "e"], "max_tokens": 60},
    "one call": {"messages": asking("How is the weather in Lisbon, in celsius?"), "tools": [WEATHER, CLOCK],
                 "tool_choice": "required"},
    "tools, free choice": {"messages": asking("What time is it in UTC+3?"), "tools": [WEATHER, CLOCK]},
    "cut by max_tokens": {"messages": asking("Tell me a long story."), "max_tokens": 5},
}  # fmt: skip
_MARKERS = ("<|tool_call", "<|im_", "[EOS]")


async def suite(endpoint: Endpoint) -> Sequence[Check]:
    results = await asyncio.gather(*(_case(endpoint, name, {**_GREEDY, **body}) for name, body in _CASES.items()))
    return [check for checks in results for check in checks]


async def _case(endpoint: Endpoint, name: str, body: Mapping[str, Json]) -> list[Check]:
    streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
    first, second, stream = await asyncio.gather(
        endpoint.ask(body, salt=["stream", 0]), endpoint.ask(body, salt=["stream", 1]),
        endpoint.ask(streaming, salt="stream"),
    )  # fmt: skip
    for reply in (first, second, stream):
        if reply.status != 200:
            return [unanswered(SUITE, name, reply)]
    checks = [_form(name, stream), _markers(name, stream, endpoint.model)]
    if said(first) != said(second):
        detail = "the same request has two answers at temperature 0"
        return [*checks, Check(suite=SUITE, name=f"{name}: equals whole", verdict="unknown", detail=detail)]
    folded = Reply(200, whole(stream, endpoint.model), "", 0.0)
    checks.append(
        found(SUITE, f"{name}: equals whole", said(folded) == said(first), f"{said(folded)!r}, whole {said(first)!r}")
    )
    counts = [_counted(reply.usage) for reply in (stream, first)]
    checks.append(found(SUITE, f"{name}: equal usage", counts[0] == counts[1], f"{counts[0]}, whole {counts[1]}"))
    return checks


def _form(name: str, stream: Reply) -> Check:
    """One finish reason, behind everything else; calls begin with name and id, and are numbered from 0."""
    parts = [part for event in stream.events for part in listed(event, "choices")]
    ends = [place for place, part in enumerate(parts) if at(part, "finish_reason")]
    pieces = [piece for part in parts for piece in listed(part, "delta", "tool_calls")]
    begun: list[int] = []
    wrong = "" if len(ends) == 1 else f"{len(ends)} finish reasons"
    if len(ends) == 1 and any(text_at(part, "delta", "content") for part in parts[ends[0] + 1 :]):
        wrong = "text behind the finish reason"
    for piece in pieces:
        index = at(piece, "index")
        if index not in begun:
            begun.append(index)
            if not at(piece, "id") or not text_at(piece, "function", "name"):
                wrong = wrong or f"call {index} begins without id or name"
    if begun != list(range(len(begun))):
        wrong = wrong or f"calls are numbered {begun}"
    return found(SUITE, f"{name}: form of the events", not wrong, wrong)


def _markers(name: str, stream: Reply, model: str) -> Check:
    content = text_at(whole(stream, model), "choices", 0, "message", "content")
    seen = [marker for marker in _MARKERS if marker in content]
    return found(SUITE, f"{name}: no control tokens in the text", not seen, f"{', '.join(seen)} in {content!r}")


def _counted(usage: Json) -> list[Json]:
    return [at(usage, name) for name in ("prompt_tokens", "completion_tokens")]
