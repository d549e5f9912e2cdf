"""Clients that are idle, slow, gone or up to no good: what do the others notice, and what is left behind?

    python bench/connections.py [--idle 500] [--streams 64] [--rounds 40] [--port 8123]

`baltoro serve nano` in a process of its own. A polite client asks for short streamed answers, alone first; then beside
idle connections that stay open, streams under way, clients that read a few bytes at a time, that hang up in the middle,
whose heads and bodies come byte by byte and never end; then alone again. The JSON line has its times to the first
token (a client waits for the streams' computing too: the middle figure without streams is that of connections alone)
and the server's open files, threads and memory before and after. The exit code is 1 where a polite request failed or
files or threads were left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import load
import serve

Client = Callable[[], Coroutine[Any, Any, None]]


def chat(tokens: int, seed: int) -> dict[str, Any]:
    return {
        "model": "nano", "prompt": [300 + seed % 1000, 400, 500], "max_tokens": tokens, "seed": seed, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def held(pid: int) -> dict[str, int]:
    process = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "files": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "rss_mib": int(status["VmRSS"].split()[0]) // 1024,
    }


class Crowd:
    """Everybody but the polite client. Each comes again when it is thrown out."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, client: Client, count: int) -> None:
        self._tasks += [asyncio.create_task(self._again(client)) for _ in range(count)]

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _again(self, client: Client) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
                await client()
            await asyncio.sleep(0.2)

    async def _hold(self, sent: bytes, then: Callable[[Any, Any], Coroutine[Any, Any, None]]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            await then(reader, writer)
        finally:
            writer.transport.abort()

    def _post(self, body: bytes, length: int) -> bytes:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"
        return head.encode() + b"\r\n\r\n" + body

    async def idle(self) -> None:
        async def wait(reader: Any, writer: Any) -> None:  # noqa: ARG001
            await reader.readuntil(b"\r\n\r\n")
            while await reader.read(1000):
                pass

        await self._hold(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", wait)

    async def stream(self) -> None:
        await load.ask(f"http://127.0.0.1:{self.port}/v1/completions", chat(400, time.monotonic_ns() % 10_000))

    async def slow_reader(self) -> None:
        body = json.dumps(chat(400, 7)).encode()

        async def sip(reader: Any, writer: Any) -> None:  # noqa: ARG001
            while await reader.read(20):
                await asyncio.sleep(0.2)

        await self._hold(self._post(body, len(body)), sip)

    async def hangs_up(self) -> None:
        await load.ask(f"http://127.0.0.1:{self.port}/v1/completions", chat(200, 9), leave_after=3)

    async def half_a_body(self) -> None:
        async def trickle(reader: Any, writer: Any) -> None:  # noqa: ARG001
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.5)

        await self._hold(self._post(b"{", 1_000_000), trickle)

    async def half_a_head(self) -> None:
        async def trickle(reader: Any, writer: Any) -> None:  # noqa: ARG001
            while True:
                writer.write(b"x: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.5)

        await self._hold(b"GET / HTTP/1.1\r\n", trickle)


async def polite(port: int, rounds: int) -> dict[str, Any]:
    answers = [await load.ask(f"http://127.0.0.1:{port}/v1/completions", chat(4, seed)) for seed in range(rounds)]
    first = sorted(each.first_s for each in answers if each.first_s is not None)
    return {
        "failed": sum(each.status != 200 or each.tokens != 4 for each in answers),
        "ttft_ms": {
            "p50": round(1e3 * first[len(first) // 2], 1),
            "p95": round(1e3 * first[int(0.95 * len(first))], 1),
        },
    }


async def run(port: int, pid: int, given: argparse.Namespace) -> dict[str, Any]:
    crowd = Crowd(port)
    await polite(port, 5)
    found: dict[str, Any] = {"held_before": held(pid), "alone": await polite(port, given.rounds)}
    crowd.add(crowd.idle, given.idle)
    for client in (crowd.half_a_body, crowd.half_a_head):
        crowd.add(client, given.idle // 10)
    await asyncio.sleep(3)
    found |= {"beside_connections": await polite(port, given.rounds), "held_then": held(pid)}
    crowd.add(crowd.stream, given.streams)
    for client in (crowd.slow_reader, crowd.hangs_up):
        crowd.add(client, given.streams // 4)
    await asyncio.sleep(3)
    found |= {"beside_all": await polite(port, given.rounds), "held_at_most": held(pid)}
    await crowd.leave()
    found |= {"alone_again": await polite(port, given.rounds)}
    deadline = time.monotonic() + 30
    while held(pid)["files"] > found["held_before"]["files"] and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return found | {"held_after": held(pid)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--port", type=int, default=8123)
    given = parser.parse_args()
    command = [sys.executable, "-m", "baltoro", "serve", "nano", "--port", str(given.port), "--max-running", "96"]
    server = serve.Server("baltoro", command, given.port)
    with server.running():
        found = asyncio.run(run(given.port, server.pid, given))
    phases = ("alone", "beside_connections", "beside_all", "alone_again")
    failed = sum(found[phase]["failed"] for phase in phases)
    # asyncio keeps threads of its pool, as many as it once had use for.
    left = found["held_after"]["files"] - found["held_before"]["files"]
    told = {
        "bench": "connections", "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine(),
        "cores": os.cpu_count(), "idle": given.idle, "streams": given.streams, **found, "failed": failed,
        "files_left": left,
    }  # fmt: skip
    print(json.dumps(told))
    return int(bool(failed or left > 0))


if __name__ == "__main__":
    sys.exit(main())
