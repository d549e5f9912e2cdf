"""Thousands of requests that almost fit, against the whole server with nano behind it: is every refusal a refusal?

    python bench/fuzz.py [--requests 10000] [--seed 0]

Valid bodies of every dialect with one or two places broken (tests/server/malformed.py): wrong types, endless nesting
and numbers, halves of characters, cut JSON, other content types, lengths that are not true. All are sent twice: what
is kept on purpose (compiled schemas, beginnings of prompts) is there after the first time, and what grows in the second
is a leak. The JSON line says how many answers had which status, and memory, files, threads and tasks after each time.
The exit code is 1 where an answer was no refusal in its dialect's envelope, or something grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from tests.server import malformed
from tests.server.conftest import serving

FLAT = 0.01  # of memory


def held(app: malformed.Watched) -> dict[str, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "tasks": app.settled(1, within_s=5),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    llm = LLM.open("nano", max_context=1024)
    app = malformed.Watched(create_app(Served(llm=llm, names=("tiny",))))
    statuses: Counter[str] = Counter()
    complaints: list[dict[str, Any]] = []
    began, seen = time.monotonic(), list[dict[str, int]]()
    with serving(app) as address:
        for _ in range(2):
            for request in malformed.requests(options.requests // 2, options.seed):
                answered = malformed.ask(address.port, request)
                statuses["left" if answered is None else str(answered[0])] += 1
                wrong = None if answered is None else malformed.complaint(request, *answered)
                if wrong is not None:
                    told = {"request": repr(request)[:2000], "answer": repr(answered)[:500], "wrong": wrong}
                    complaints.append(told)
            seen.append(held(app))
    llm.close()
    before, after = seen
    grew = after["rss_bytes"] > before["rss_bytes"] * (1 + FLAT) or any(
        after[name] > before[name] for name in ("tasks", "files")
    )
    report = {
        "bench": "fuzz", "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine(),
        "cpus": os.cpu_count(), "requests": options.requests, "seed": options.seed, "statuses": dict(statuses),
        "seconds": round(time.monotonic() - began, 1), "before": before, "after": after, "grew": grew,
        "complaints": complaints[:5], "complaints_count": len(complaints),
    }  # fmt: skip
    print(json.dumps(report))
    return int(grew or bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
