"""Environments that `make clients` has made, and programs that run in them against a server of this test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from baltoro.chat.messages import Json
from baltoro.server.app import Served, create_app
from tests.clients.agent import Agent
from tests.server.conftest import Address, serving

INSTALLED = Path(__file__).parents[2] / "build/clients"
TIMEOUT_S = 300  # some of them take half a minute to start on a busy machine

Start = Callable[[Mapping[str, Mapping[str, Json]]], tuple[Agent, Address]]


@pytest.fixture
def start() -> Iterator[Start]:
    """A server whose script calls these tools."""
    with ExitStack() as servers:

        def begin(calls: Mapping[str, Mapping[str, Json]]) -> tuple[Agent, Address]:
            agent = Agent(calls)
            served = Served(llm=agent, names=("tiny",))  # type: ignore[arg-type]
            return agent, servers.enter_context(serving(create_app(served)))

        yield begin


def installed(name: str, program: str) -> Path:
    """A program of an environment; without it the test is skipped."""
    found = INSTALLED / name / program
    if not (INSTALLED / name / ".installed").exists():
        pytest.skip(f"{name} is not installed: make clients")
    return found


def node(name: str) -> Path:
    """Where the programs of an npm environment lie."""
    return installed(name, "node_modules/.bin")


def run(command: list[str], home: Path, **environment: str) -> str:
    """What `command` printed. It sees no key, proxy or settings of whoever runs the test, and no host but loopback."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "SSL_CERT_FILE") if name in os.environ}
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, cwd=home, check=False,
        env={**kept, **nowhere, "HOME": str(home), **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
