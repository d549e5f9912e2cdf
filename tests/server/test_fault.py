"""`baltoro serve` whose engine fails, as who runs it sees that: /health, the answers, the exit code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

FAILS, HANGS = 13, 14  # first tokens of prompts
PROGRAM = """
import time
from baltoro.cli import main
from baltoro.engine.loop import Loop
whole = Loop._forward
def forward(self, batch, layout):
    first = batch.ids[batch.positions == 0]
    if 13 in first:
        raise SystemExit("a bug of ours")
    if 14 in first:
        time.sleep(600)
    return whole(self, batch, layout)
Loop._forward = forward
main()
"""


@contextmanager
def serving(checkpoint: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, "serve", str(checkpoint), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, "--stuck-after", "3", *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if line.startswith("serving"):
                url = line.split(" on ")[1].split()[0].removesuffix("/v1")
                break
        assert url, "it never began to serve"
        wait_for(url, 200)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def wait_for(url: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/health").status_code == status:
                return
        except httpx.ConnectError:
            pass
        assert time.monotonic() < deadline, f"/health never answers {status}"
        time.sleep(0.05)


def ask(url: str, first: int) -> httpx.Response:
    body = {"model": "baltoro", "prompt": [first, 2], "max_tokens": 3}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def test_a_failure_is_503_once_a_stuck_step_for_good(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint, "--no-exit-on-fault") as (process, url):
        failed = ask(url, FAILS)
        assert failed.status_code == 503
        assert "a bug of ours" in failed.json()["error"]["message"]
        wait_for(url, 200)
        assert ask(url, 1).status_code == 200
        assert httpx.get(f"{url}/stats").json()["engine"]["restarts"] == 1

        stuck = ask(url, HANGS)
        assert stuck.status_code == 503
        assert "stuck" in stuck.json()["error"]["message"]
        wait_for(url, 503)
        assert ask(url, 1).status_code == 503
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 1


def test_a_process_whose_engine_is_stuck_leaves_with_1(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint) as (process, url):
        assert ask(url, HANGS).status_code == 503
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "error: a step has lasted" in err
