"""What a server may answer, beyond what a whole fetch meets in test_run.py."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from baltoro.errors import FetchError
from baltoro.weights.fetch.http import Http, Patience, Transient, later


@contextmanager
def answers(*replies: str) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers one after the other, whatever is asked; and what was asked."""
    heard: list[str] = []
    waiting = list(replies)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while waiting and (line := self.rfile.readline().decode()):
                lines = [line, *iter(lambda: self.rfile.readline().decode(), "\r\n")]
                heard.append("".join(lines))
                head, _, body = waiting.pop(0).partition("\n\n")
                self.wfile.write(f"HTTP/1.1 {head}\n\n".replace("\n", "\r\n").encode() + body.encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def body_of(url: str, start: int = 0, end: int = 5, size: int = 10) -> bytes:
    with Http(url).open(f"{url}/x", size, start, end) as body:
        return b"".join(body.chunks)


def test_a_range_is_read_as_far_as_it_was_asked_for() -> None:
    with answers("206 OK\nContent-Length: 5\nContent-Range: bytes 2-6/10\n\nabcde") as (url, heard):
        assert body_of(url, 2, 7) == b"abcde"
        assert "Range: bytes=2-6\r\n" in heard[0]
        assert "Accept-Encoding: identity\r\n" in heard[0]


def test_a_server_without_ranges_sends_all_and_what_comes_before_is_skipped() -> None:
    with answers("200 OK\nContent-Length: 10\n\n0123456789") as (url, _), Http(url).open(f"{url}/x", 10, 4, 6) as body:
        assert not body.ranged
        assert b"".join(body.chunks) == b"456789"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("206 OK\nContent-Length: 5\nContent-Range: bytes 0-4/11\n\nabcde", "has 11 bytes now, expected 10"),
        ("200 OK\nContent-Length: 9\n\n012345678", "has 9 bytes now, expected 10"),
        ("416 Range Not Satisfiable\nContent-Length: 0\n\n", "has no bytes 0 to 5"),
        ("200 OK\nContent-Encoding: gzip\nContent-Length: 10\n\n0123456789", "compresses"),
        ("403 Forbidden\nContent-Length: 0\n\n", "not allowed"),
        ("404 Not Found\nContent-Length: 0\n\n", "answers 404"),
        ("302 Found\nLocation: file:///etc/passwd\nContent-Length: 0\n\n", "redirects to file:///etc/passwd"),
    ],
)
def test_an_answer_that_no_retry_mends_is_explained(reply: str, says: str) -> None:
    with answers(reply) as (url, _), pytest.raises(FetchError, match=re.escape(says)):
        body_of(url)


@pytest.mark.parametrize(
    "reply",
    [
        "206 OK\nContent-Length: 5\nContent-Range: bytes 5-9/10\n\nabcde",  # a proxy that mixes up ranges
        "206 OK\nContent-Length: 5\nContent-Range: bytes 0-4/10\n\nab",
        "503 Busy\nContent-Length: 0\n\n",
        "nonsense",
    ],
)
def test_an_answer_that_a_retry_may_mend_is_transient(reply: str) -> None:
    with answers(reply) as (url, _), pytest.raises(Transient):
        body_of(url)


def test_nobody_there_is_transient_and_given_up_in_the_end() -> None:
    http = Http("http://127.0.0.1:9")
    patience = Patience(total_s=0.05, first_wait_s=0.01)
    with pytest.raises(FetchError, match=r"no byte came in 0 s"):
        patience.call(lambda: http.head("http://127.0.0.1:9/x"))


def test_a_name_that_nobody_knows_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match="Name or service not known"):
        Patience(total_s=60).call(lambda: Http("http://mirror.invalid").head("http://mirror.invalid/x"))


def test_a_certificate_that_nobody_vouches_for_is_told_at_once(tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    try:
        subprocess.run(
            [*command, "-keyout", "key.pem", "-out", "own.pem"], cwd=tmp_path, check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("makes its certificate with openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"https://localhost:{server.server_address[1]}"
        with pytest.raises(FetchError, match=r"self.signed certificate") as error:
            Patience(total_s=60).call(lambda: Http(url).head(f"{url}/x"))
        server.shutdown()
    assert "SSL_CERT_FILE" in error.value.hint


def test_redirects_in_a_circle_end() -> None:
    turn = "302 Found\nLocation: /y\nContent-Length: 0\n\n"
    with answers(*[turn] * 20) as (url, _), pytest.raises(FetchError, match="without an end"):
        body_of(url)


def test_the_token_is_sent_to_the_hub_alone() -> None:
    with (
        answers("206 OK\nContent-Length: 1\nContent-Range: bytes 0-0/1\n\nx") as (cdn, at_cdn),
        answers(f"302 Found\nLocation: {cdn}/x\nContent-Length: 0\n\n") as (hub, at_hub),
        Http(hub, token="secret").open(f"{hub}/x", 1, 0, 1) as body,
    ):
        assert list(body.chunks) == [b"x"]
    assert "Authorization: Bearer secret" in at_hub[0]
    assert "secret" not in at_cdn[0]


def test_a_proxy_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers("206 OK\nContent-Length: 5\nContent-Range: bytes 0-4/10\n\nabcde") as (proxy, heard):
        monkeypatch.setenv("http_proxy", proxy)
        assert body_of("http://mirror.invalid") == b"abcde"
        assert heard[0].startswith("GET http://mirror.invalid/x HTTP/1.1\r\n")


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    plea = later(503, {"Retry-After": date}, "host")
    assert plea is not None
    assert 90 < plea.wait_s <= 100
    nonsense = later(429, {"Retry-After": "soon"}, "host")
    assert nonsense is not None
    assert nonsense.wait_s == 0
    window = later(429, {"RateLimit": '"resolvers";r=0;t=55'}, "host")
    assert window is not None
    assert window.wait_s == 55
    assert later(404, {}, "host") is None


def test_waits_grow_and_never_fall_below_what_was_asked() -> None:
    patience = Patience(first_wait_s=1, longest_wait_s=8)
    assert [patience.wait_s(failures, 0) for failures in range(5)] == [1, 2, 4, 8, 8]
    assert patience.wait_s(0, 30) == 30
