"""Mixed load on our server for a long time: nothing may leak, stick or fail that was not broken off.

    python bench/soak.py [--model nano] [--minutes 60] [--streams 32] [--port 8120] [--seed 0]

Streams ask one thing after the other: chats with tools and without, answers with a schema of their own, completions of
token ids, whole and streamed, some with several choices, some that begin like many others. Every fifth client hangs
up: before its answer begins, in the middle of it, or without reading a byte. Once a minute a line says what the process
holds; at the end the JSON line says how many requests came to which end, the memory after a tenth of the time and at
the end, and whether every page is free. The exit code is 1 where something leaked, stuck or failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import load
import serve

FLAT = 0.02  # of memory
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city"],
        },
    },
}
CITIES = ("Beijing", "Skardu", "Paris", "Lima", "Oslo", "Hanoi", "Accra", "Quito")


class Mix:
    """Requests, one unlike the other."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._shared = [[self._chance.randrange(300, 1700) for _ in range(600)] for _ in range(12)]

    def next(self) -> tuple[str, dict[str, Any]]:
        chance = self._chance
        body: dict[str, Any] = {
            "model": "nano", "temperature": chance.choice([0.0, 0.6, 1.0]), "seed": chance.randrange(2**31),
            "max_tokens": chance.choice([1, 8, 40, 120]), "n": chance.choice([1, 1, 1, 2]),
        }  # fmt: skip
        if chance.random() < 0.7:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if chance.random() < 0.4:
            begin = chance.choice(self._shared)[: chance.choice([0, 64, 600])]
            own = [chance.randrange(300, 1700) for _ in range(chance.choice([1, 30, 400]))]
            return "/v1/completions", body | {"prompt": begin + own, "ignore_eos": chance.random() < 0.5}
        body["messages"] = [{"role": "user", "content": f"How is the weather in {chance.choice(CITIES)}?"}]
        if chance.random() < 0.6:
            body |= {"tools": [WEATHER], "tool_choice": chance.choice(["auto", "required", "none"])}
        return "/v1/chat/completions", body

    def leaves_after(self) -> int | None:
        """Events; 0: at once. None: it stays."""
        return self._chance.choice([0, 1, 2, 9]) if self._chance.random() < 0.2 else None


async def stream(url: str, mix: Mix, ends: Counter[str], until: float) -> None:
    while time.monotonic() < until:
        path, body = mix.next()
        leaves = mix.leaves_after()
        try:
            if leaves == 0:
                await load.leave(url + path, body)
                ends["left"] += 1
                continue
            answer = await load.ask(url + path, body, leave_after=leaves)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            ends[f"failed: {error!r}"] += 1
            continue
        if answer.status != 200:
            ends[f"status {answer.status}"] += 1
        elif leaves is not None and body.get("stream"):
            ends["left"] += 1
        else:
            whole = not body.get("stream") or answer.events[-1] == b"data: [DONE]"
            ends["whole" if whole else "cut"] += 1


def resident_bytes(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as told:
        return json.load(told)["engine"]


async def watch(url: str, pid: int, seen: list[int], ends: Counter[str], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        seen.append(resident_bytes(pid))
        told = await asyncio.to_thread(stats, url)
        held = f"{told['running']} running, {told['waiting']} waiting, {told['free_pages']}/{told['num_pages']} free"
        print(f"{len(seen):4d} {seen[-1] / 2**20:8.1f} MiB  {held}  {dict(ends)}", file=sys.stderr)


async def soak(url: str, pid: int, given: argparse.Namespace) -> tuple[Counter[str], list[int]]:
    ends, seen, mix = Counter[str](), [resident_bytes(pid)], Mix(given.seed)
    watching = asyncio.create_task(watch(url, pid, seen, ends, 60.0 * given.minutes / max(10, given.minutes)))
    until = time.monotonic() + 60.0 * given.minutes
    await asyncio.gather(*(stream(url, mix, ends, until) for _ in range(given.streams)))
    watching.cancel()
    seen.append(resident_bytes(pid))
    return ends, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--port", type=int, default=8120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    command = [sys.executable, "-m", "baltoro", "serve", given.model, "--port", str(given.port)]
    server = serve.Server("baltoro", command, given.port)
    with server.running() as url:
        pid = server.pid
        ends, seen = asyncio.run(soak(url, pid, given))
        until = time.monotonic() + 30.0
        while (told := stats(url))["running"] + told["waiting"] and time.monotonic() < until:
            time.sleep(0.1)
    warm = seen[max(1, len(seen) // 10)]
    growth = seen[-1] / warm - 1.0
    free = told["free_pages"] == told["num_pages"]
    stuck = told["running"] + told["waiting"]
    bad = {end: count for end, count in ends.items() if end not in ("whole", "left")}
    told_of = {
        "machine": platform.machine(), "cores": os.cpu_count(), "minutes": given.minutes, "streams": given.streams,
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "ends": dict(ends), "warm_bytes": warm,
        "end_bytes": seen[-1], "most_bytes": max(seen), "growth": round(growth, 4), "every_page_free": free,
        "stuck": stuck, "generated_tokens": told["generated_tokens"], "preemptions": told["preemptions"],
        "restarts": told["restarts"],
    }  # fmt: skip
    print(json.dumps(told_of))
    sys.exit(bool(bad or stuck or not free or growth > FLAT))


if __name__ == "__main__":
    main()
