"""Many streams of one HTTP server's /v1/completions, timed: the client of bench/serve.py and bench/soak.py.

It reads server-sent events from bare sockets and looks into them afterwards, since what a client takes of two cores
the server does not get. An answer is what `usage` says of it; the first token is there with the first event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Json = Any
TIMEOUT_S = 600.0


@dataclass(slots=True)
class Answer:
    """One request, in seconds since it was sent."""

    status: int = 0
    first_s: float | None = None
    end_s: float = 0.0
    events: list[bytes] = field(default_factory=list)  # `data:` lines

    @property
    def usage(self) -> dict[str, Json]:
        for line in reversed(self.events):
            if line != b"data: [DONE]" and (usage := json.loads(line[5:]).get("usage")):
                return usage
        return {}

    @property
    def tokens(self) -> int:
        return int(self.usage.get("completion_tokens", 0))

    @property
    def between_s(self) -> float | None:
        """Mean seconds from token to token, after the first."""
        if self.first_s is None or self.tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.tokens - 1)


async def _post(url: str, body: Json) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    payload = json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head.encode() + payload)
    return reader, writer


async def leave(url: str, body: Json) -> None:
    """POST `body` and hang up without reading."""
    _, writer = await _post(url, body)
    await writer.drain()
    writer.close()


async def ask(url: str, body: Json, *, leave_after: int | None = None) -> Answer:
    """POST `body` and read to the end; with `leave_after` hang up after so many events."""
    answer, sent = Answer(), time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await _post(url, body)
        try:
            answer.status = int((await reader.readline()).split()[1])
            whole = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    whole = int(line.split(b":")[1])
            if whole:  # in one piece, as if it were an event
                answer.events.append(b"data:" + await reader.readexactly(whole))
                return answer
            async for line in _lines(reader):
                if line.startswith(b"data:"):
                    answer.events.append(line)
                    if answer.first_s is None:
                        answer.first_s = time.perf_counter() - sent
                    if len(answer.events) == leave_after:
                        break
        finally:
            answer.end_s = time.perf_counter() - sent
            writer.close()
    return answer


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Of a chunked body."""
    rest = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.strip()


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one load."""

    streams: int
    seconds: float
    answers: list[Answer]

    def report(self) -> dict[str, Json]:
        good = [each for each in self.answers if each.status == 200 and each.tokens]
        first = sorted(each.first_s for each in good if each.first_s is not None)
        between = sorted(each.between_s for each in good if each.between_s is not None)
        return {
            "streams": self.streams,
            "requests": len(self.answers),
            "failed": len(self.answers) - len(good),
            "output_tokens_per_s": round(sum(each.tokens for each in good) / self.seconds, 1),
            "ttft_ms": {"p50": _ms(first, 0.5), "p99": _ms(first, 0.99)},
            "tpot_ms": {"p50": _ms(between, 0.5), "p99": _ms(between, 0.99)},
        }


def _ms(rising: Sequence[float], share: float) -> float | None:
    return round(1e3 * rising[round(share * (len(rising) - 1))], 2) if rising else None


async def _run(url: str, bodies: Sequence[Json], streams: int) -> Load:
    left = list(reversed(bodies))
    answers: list[Answer] = []

    async def stream() -> None:
        while left:
            answers.append(await ask(url, left.pop()))

    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return Load(streams, time.perf_counter() - began, answers)


def run(url: str, bodies: Sequence[Json], streams: int) -> Load:
    """All bodies, `streams` at once, each stream's next one as soon as its last has ended."""
    return asyncio.run(_run(url, bodies, streams))
