"""Connections of clients that are slow, gone, or up to no good; others are answered all the while."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anthropic
import httpx
import openai
import pytest

from baltoro.chat.messages import Finished, TextDelta
from baltoro.server import body, connections
from baltoro.server.app import Served, create_app
from baltoro.server.connections import MAX_HEAD_BYTES, Connection
from tests.server.conftest import Address, serving
from tests.server.malformed import Watched
from tests.server.script import USAGE, Script

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
HEAD = "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"


class Hasty(Connection):
    most = 4
    head_timeout_s = 0.3
    stall_timeout_s = 0.3


class Patient(Hasty):
    head_timeout_s = stall_timeout_s = 60.0


@contextmanager
def bounded(connection: type[Connection]) -> Iterator[tuple[Script, Watched, Address]]:
    script = Script()
    app = Watched(create_app(Served(llm=script, names=("tiny",))))  # type: ignore[arg-type]
    with serving(app, connection) as address:
        yield script, app, address


@pytest.fixture(scope="module")
def _hasty() -> Iterator[tuple[Script, Watched, Address]]:
    with bounded(Hasty) as running:
        yield running


@pytest.fixture
def hasty(_hasty: tuple[Script, Watched, Address]) -> tuple[Script, Watched, Address]:
    _hasty[0].reset()
    return _hasty


def connected(address: Address, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", address.port), timeout=20)
    connection.sendall(sent)
    return connection


def chat(path: str = "/v1/chat/completions", **extra: object) -> bytes:
    raw = json.dumps({**GOOD, **extra}).encode()
    return HEAD.format(path=path, length=len(raw)).encode() + raw


def heard(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    connection.close()
    return received


def answer(connection: socket.socket) -> bytes:
    """One answer with a body that is sent whole; the connection stays."""
    with connection.makefile("rb") as lines:
        received, length = b"", 0
        while (line := lines.readline()) not in (b"\r\n", b""):
            received += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return received + lines.read(length)


# --------------------------------------------------------------------------------------------------- too slow


@pytest.mark.parametrize(
    "sent",
    [b"", b"P", b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n", chat() + b"GET /hea", chat() + b"\r\n"],
    ids=["nothing", "a byte", "half a head", "half a head behind a request", "a line behind a request"],
)
def test_a_head_that_does_not_come_ends_the_connection(hasty: tuple[Script, Watched, Address], sent: bytes) -> None:
    received = heard(connected(hasty[2], sent))
    assert received.startswith(b"HTTP/1.1 200") if sent.startswith(b"POST /v1/chat") else received == b""
    assert hasty[2].http.get("/health").status_code == 200


def test_bytes_that_trickle_in_do_not_make_a_head_s_time_longer(hasty: tuple[Script, Watched, Address]) -> None:
    connection = connected(hasty[2], b"GET /health HTTP/1.1\r\n")
    connection.settimeout(0.05)
    deadline = time.monotonic() + 20
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while time.monotonic() < deadline:
            connection.sendall(b"x: y\r\n")
            try:
                connection.recv(1)
            except TimeoutError:
                continue
    connection.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_body_that_does_not_come_is_408_and_ends_the_connection(
    hasty: tuple[Script, Watched, Address], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.2)
    received = heard(connected(hasty[2], HEAD.format(path=path, length=500).encode() + b'{"model": "tiny", '))
    head, _, told = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head
    error = json.loads(told)["error"]
    assert "of the body 18 bytes came within 0.2 s" in error["message"]
    assert error["type"] == ("timeout_error" if path == "/v1/messages" else "invalid_request_error")
    assert hasty[0].requests == []


def test_a_client_that_reads_nothing_is_cut_off_and_its_request_with_it(
    hasty: tuple[Script, Watched, Address],
) -> None:
    script, app, address = hasty
    script.deltas = [TextDelta("x" * 100_000)] * 200  # more than any socket buffers
    connection = connected(address, chat(stream=True))
    assert script.closed.wait(20)
    assert len(heard(connection)) < 20_000_000
    assert app.settled(1) <= 1


# ------------------------------------------------------------------------------------------------------- gone


def test_a_client_that_leaves_within_its_body_is_no_fault_of_ours(
    hasty: tuple[Script, Watched, Address], caplog: pytest.LogCaptureFixture
) -> None:
    script, app, address = hasty
    with caplog.at_level(logging.INFO):
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"):
            connected(address, HEAD.format(path=path, length=500).encode() + b"{").close()
        assert app.settled(1) <= 1
        until = time.monotonic() + 20
        while (page := address.http.get("/metrics").text).count('status="499"') < 4 and time.monotonic() < until:
            time.sleep(0.05)
    assert 'route="/v1/messages",status="499"' in page and 'status="5' not in page
    assert "Traceback" not in caplog.text and not [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert script.requests == []


# --------------------------------------------------------------------------------------------------- too many


def test_a_new_connection_takes_the_place_of_the_one_that_is_idle_longest() -> None:
    with bounded(Patient) as (_, _, address), ExitStack() as stack:
        kept = [stack.enter_context(connected(address)) for _ in range(Patient.most)]
        for each in [*kept[1:], kept[0]]:  # so kept[1] has been idle longest
            each.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer(each).startswith(b"HTTP/1.1 200")
        late = stack.enter_context(connected(address, chat()))
        assert answer(late).startswith(b"HTTP/1.1 200")
        assert heard(kept.pop(1)) == b""
        for each in kept:
            each.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer(each).startswith(b"HTTP/1.1 200")


def test_where_all_are_busy_a_new_connection_hears_503_in_words_of_both_vendors() -> None:
    with bounded(Patient) as (script, _, address), ExitStack() as stack:
        script.deltas = [TextDelta("Hel"), 60.0, Finished("stop", USAGE)]
        for _ in range(Patient.most):
            busy = stack.enter_context(connected(address, chat(stream=True)))
            assert busy.recv(100)
        response = address.http.get("/health")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        with pytest.raises(openai.InternalServerError, match="as many connections as it takes"):
            address.openai.models.list()
        with pytest.raises(anthropic.InternalServerError, match="as many connections as it takes"):
            address.anthropic.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
        stack.close()  # all four leave
        assert script.all_closed(Patient.most)
        deadline = time.monotonic() + 20
        while address.http.get("/health").status_code != 200:
            assert time.monotonic() < deadline


def test_there_is_room_for_hundreds_wherever_we_run() -> None:
    assert 128 <= connections.allowed_connections() <= connections.MOST_CONNECTIONS


# ------------------------------------------------------------------------------------------------- no HTTP at all


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"hello\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\x00b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + b"x: y\r\n" * 35_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda sent: repr(sent[:24]),
)
def test_what_is_no_request_is_400_in_json(hasty: tuple[Script, Watched, Address], sent: bytes) -> None:
    received = heard(connected(hasty[2], sent))
    head, _, told = received.partition(b"\r\n\r\n")
    if not received:  # the kernel drops an answer when the connection is closed over what was never read
        assert len(sent) > MAX_HEAD_BYTES
        return
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")) and b"application/json" in head
    assert json.loads(told)["error"]["type"] == "invalid_request_error"


# ----------------------------------------------------------------------------------------------------- all at once


def test_idle_slow_and_broken_clients_leave_nothing_behind() -> None:
    """bench/connections.py in small, without its clock."""
    with bounded(Connection) as (script, app, address):
        assert address.http.get("/health").status_code == 200
        before = app.settled(1)
        script.deltas = [TextDelta("Hel"), 0.2, TextDelta("lo"), Finished("stop", USAGE)]
        with ExitStack() as stack:
            half = HEAD.format(path="/v1/messages", length=500).encode()
            for sent in [b""] * 40 + [half] * 10 + [chat(stream=True)] * 10:
                stack.enter_context(connected(address, sent))
            for _ in range(10):
                connected(address, chat()).close()
            answers = [
                httpx.post(f"{address.url}/v1/chat/completions", json={**GOOD, "stream": True}, timeout=20)
                for _ in range(4)
            ]
            assert all(each.text.endswith("data: [DONE]\n\n") for each in answers)
        assert app.settled(before) <= before
        assert address.http.get("/health").status_code == 200
