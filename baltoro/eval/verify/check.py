"""What a suite finds: one thing that an endpoint does, does not, or refuses to be asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from baltoro.eval.document import at, listed, text_at
from baltoro.eval.endpoint import Endpoint, Reply

Json = Any
Verdict = Literal["pass", "fail", "refused", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """refused: the endpoint says no, which is honest. unknown: it cannot be told from here, and `detail` says why."""

    suite: str
    name: str
    verdict: Verdict
    detail: str = ""


Suite = Callable[[Endpoint], Awaitable[Sequence[Check]]]


def found(suite: str, name: str, good: bool, detail: str) -> Check:
    """detail: what was seen, told where it is wrong"""
    return Check(suite=suite, name=name, verdict="pass" if good else "fail", detail="" if good else detail)


def unanswered(suite: str, name: str, reply: Reply) -> Check:
    """For a request without an answer: a 4xx is a refusal, anything else a failure."""
    refused = 400 <= reply.status < 500 and reply.status != 429
    return Check(suite=suite, name=name, verdict="refused" if refused else "fail", detail=reply.error[:300])


def text(reply: Reply) -> str:
    return text_at(reply.body, "choices", 0, "message", "content")


def calls(reply: Reply) -> list[Json]:
    return listed(reply.body, "choices", 0, "message", "tool_calls")


def said(reply: Reply) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls and finish reason: what two equal answers have in common. Ids may differ."""
    made = [(text_at(call, "function", "name"), text_at(call, "function", "arguments")) for call in calls(reply)]
    return text(reply), made, str(at(reply.body, "choices", 0, "finish_reason"))


def asking(content: str) -> list[Json]:
    return [{"role": "user", "content": content}]


WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, now.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city.", "maxLength": 40},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Json = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of day in a time zone.",
        "parameters": {
            "type": "object",
            "properties": {"hours_from_utc": {"type": "integer", "minimum": -12, "maximum": 14}},
            "required": ["hours_from_utc"],
            "additionalProperties": False,
        },
    },
}
