"""`baltoro serve --engine vllm`, the whole way, with a stand-in for vLLM that serves nano."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from typer.testing import CliRunner

from baltoro.cli import app

ROOT = Path(__file__).parents[2]
STAND_IN = """
import os, signal, sys
from http.server import ThreadingHTTPServer
from tests.engine.upstream import faulty
from tests.test_upstreams import nano
assert "--max-model-len" in sys.argv and sys.argv[1] == "serve", sys.argv
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
port = int(sys.argv[sys.argv.index("--port") + 1])
class There(ThreadingHTTPServer):
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", port), handler)
faulty.ThreadingHTTPServer = There
with open(os.environ["STAND_IN_PID"], "w") as file:
    file.write(str(os.getpid()))
faulty.FaultyUpstream(nano(), "vllm")
"""


@contextmanager
def served(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A gateway before the stand-in, and what it said until it served."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "stand_in.py"} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "BALTORO_VLLM": str(program), "STAND_IN_PID": str(tmp_path / "pid"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    line = [sys.executable, "-m", "baltoro", "serve", "nano", "--engine", "vllm", "--port", "0", *options]
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    try:
        assert process.stderr is not None
        for each in process.stderr:
            said.append(each)
            if each.startswith("serving"):
                break
        yield process, said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def client(said: list[str]) -> httpx.Client:
    """The line comes a moment before the socket listens."""
    assert said and "serving nano" in said[-1], said
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+(?=/v1)", said[-1])
    return httpx.Client(base_url=url, timeout=60, transport=httpx.HTTPTransport(retries=8))


def test_it_answers_through_vllm_and_leaves_with_code_1_when_that_ends(tmp_path: Path) -> None:
    with served(tmp_path, "--", "--max-model-len", "1024") as (process, said):
        body = {"model": "nano", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8}
        with client(said) as http:
            answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        _, rest = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "error: vLLM has ended with code -9" in rest


def test_sigterm_ends_both(tmp_path: Path) -> None:
    with served(tmp_path, "--", "--max-model-len", "1024") as (process, said):
        with client(said) as http:
            assert http.get("/health").status_code == 200
        child = os.pidfd_open(int((tmp_path / "pid").read_text()))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 0
        assert select.select([child], [], [], 60)[0], "vLLM was left behind"
        os.close(child)


def test_options_of_another_engine_need_that_engine() -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["serve", "nano", "--", "--dtype", "float32"])
    assert result.exit_code == 2
    assert "--engine vllm" in result.output
    result = runner.invoke(app, ["serve", "nano", "--engine", "vllm", "--upstream", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "one of both" in result.output
    result = runner.invoke(app, ["serve", "nano", "--engine", "vllm", "--port", "0", "--threads", "2"])
    assert result.exit_code == 2
    assert "--threads" in result.output
