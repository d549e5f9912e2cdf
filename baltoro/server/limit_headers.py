"""How much is left of a key's limits, in the headers of the dialect that was spoken.

OpenAI says how long until a limit is whole again, Anthropic says when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from baltoro.server.limits import Standing

Headers = list[tuple[bytes, bytes]]


def openai(standing: Sequence[Standing]) -> Headers:
    told: Headers = []
    for name, limit, remaining, reset_s in standing:
        for what, value in (("limit", str(limit)), ("remaining", str(remaining)), ("reset", _span(reset_s))):
            told.append((f"x-ratelimit-{what}-{name}".encode(), value.encode()))
    return told


def anthropic(standing: Sequence[Standing], now: datetime | None = None) -> Headers:
    """now: of the wall, UTC"""
    now = now or datetime.now(UTC)
    told: Headers = []
    for name, limit, remaining, reset_s in standing:
        reset = (now + timedelta(seconds=math.ceil(reset_s))).strftime("%Y-%m-%dT%H:%M:%SZ")
        for what, value in (("limit", str(limit)), ("remaining", str(remaining)), ("reset", reset)):
            told.append((f"anthropic-ratelimit-{name}-{what}".encode(), value.encode()))
    return told


def _span(seconds: float) -> str:
    """As OpenAI writes durations: 250ms, 59.5s, 1m0s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
