"""A real uvicorn on a loopback port, whose LLM plays what a test wrote down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import httpx
import openai
import pytest
import uvicorn
from starlette.types import ASGIApp

from baltoro.server import listen
from baltoro.server.app import Served, create_app
from baltoro.server.connections import Connection
from tests.server.script import Script


class Address:
    """Where a server of this test run listens."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        fresh = httpx.Limits(max_keepalive_connections=0)  # the server closes an idle one just when it is used again
        self.http = httpx.Client(base_url=self.url, timeout=20, limits=fresh)
        self.anthropic = anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0, timeout=20)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)


@contextmanager
def serving(app: ASGIApp, connection: type[Connection] | None = None) -> Iterator[Address]:
    sockets = listen.bind("127.0.0.1", 0)
    address = Address(listen.port_of(sockets[0]))
    sockets[0].listen()
    server = uvicorn.Server(listen.configured(app, connection, log_level="critical"))
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        address.http.close()
        address.openai.close()
        address.anthropic.close()
        thread.join()


@pytest.fixture(scope="session")
def _running() -> Iterator[tuple[Script, Address]]:
    script = Script()
    served = Served(llm=script, names=("tiny", "moonshotai/Kimi-K2-Instruct"))  # type: ignore[arg-type]
    with serving(create_app(served)) as address:
        yield script, address


@pytest.fixture
def script(_running: tuple[Script, Address]) -> Script:
    _running[0].reset()
    return _running[0]


@pytest.fixture
def server(_running: tuple[Script, Address], script: Script) -> Address:
    return _running[1]
