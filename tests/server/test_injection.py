"""What clients write into names, ids, paths and headers stays there: no header, line or file comes of it."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from baltoro.chat.compiler import Loosened
from baltoro.server import loosened
from tests.server.conftest import Address
from tests.server.script import Script

CHAT = "/v1/chat/completions"
BREAK = "tiny\r\nset-cookie: stolen=1\r\n\r\n<script>"
HI = [{"role": "user", "content": "Hi"}]


def raw(server: Address, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(65536):
            received += more
    return received


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": BREAK, "messages": HI}),
        (CHAT, {"model": "tiny", "messages": HI, BREAK: 1}),
        (CHAT, {"model": "tiny", "messages": HI, "user": BREAK, "metadata": {BREAK: BREAK}}),
        (CHAT, {"model": "tiny", "messages": HI, "tools": [{"type": "function", "function": {"name": BREAK}}]}),
        ("/v1/completions", {"model": BREAK, "prompt": "x"}),
        ("/v1/responses", {"model": "tiny", "input": "x", "tools": [{"type": BREAK, "name": BREAK}]}),
        ("/v1/messages", {"model": BREAK, "messages": HI, "max_tokens": 5}),
        ("/v1/messages", {"model": "tiny", "messages": HI, "max_tokens": 5, "metadata": {"user_id": BREAK}}),
    ],
)
def test_no_field_of_a_body_makes_a_header(
    server: Address, script: Script, path: str, body: dict, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = server.http.post(path, json=body)
    assert response.status_code in (200, 400, 404)
    assert "set-cookie" not in response.headers
    assert response.headers["content-type"].startswith("application/json")  # so a browser runs nothing in it
    assert BREAK not in response.text  # in JSON its line breaks are spelled
    assert not any("\r" in record.getMessage() or "\n" in record.getMessage() for record in caplog.records)


def test_names_of_tools_and_keywords_cannot_break_the_header_that_tells_them(server: Address, script: Script) -> None:
    script.loose = [Loosened(BREAK, f"/properties/{BREAK}/not"), Loosened("天气", "/properties/日/not")]
    body = {"model": "tiny", "messages": HI, "response_format": {"type": "json_object"}}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 200
    told = response.headers[loosened.HEADER]
    assert "set-cookie" not in response.headers and told.isascii() and "\r" not in told


@pytest.mark.parametrize(
    "given", [b"a b", b"a\xffb", b"a" * 129, b"", b"\x7f", b'"><script>'], ids=lambda value: repr(value)[:20]
)
def test_a_request_id_is_given_back_only_if_it_is_short_and_printable(server: Address, given: bytes) -> None:
    sent = b"GET /nope HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: " + given + b"\r\n\r\n"
    head = raw(server, sent).partition(b"\r\n\r\n")[0]
    ids = [line for line in head.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    if head.startswith(b"HTTP/1.1 404") and given == b'"><script>':
        assert ids == [b'x-request-id: "><script>']  # printable: a header is no page
    else:
        assert not ids or ids[0].startswith(b"x-request-id: req_")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/v1/models/../../../etc/passwd", "//etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/web/..%2f..%2fpyproject.toml", "/web/../app.py",
        "/web//etc/passwd", "/static/%00", "/v1/models/%0d%0aset-cookie:%20a=b", "/docs/../../app.py", "/%ff%fe",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file_or_into_a_header(server: Address, path: str) -> None:
    sent = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    head, _, body = raw(server, sent.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404"), head
    assert b"set-cookie" not in head.lower()
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_host_header_changes_nothing(server: Address) -> None:
    """No address that we tell is made of it, and no redirect goes there."""
    sent = (
        b"GET /v1/models/ HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-host: evil.example\r\nconnection: close\r\n\r\n"
    )
    assert b"evil" not in raw(server, sent)


def test_other_origins_may_not_read_what_we_answer(server: Address) -> None:
    """A page in a browser on this machine can reach loopback; without CORS headers it learns nothing, and a body of
    JSON needs a preflight, which is refused."""
    origin = {"origin": "https://evil.example"}
    preflight = server.http.options(CHAT, headers={**origin, "access-control-request-method": "POST"})
    assert preflight.status_code == 405
    for response in (preflight, server.http.get("/v1/models", headers=origin)):
        assert not any(name.startswith("access-control-") for name in response.headers)
    simple = server.http.post(
        CHAT, content=json.dumps({"model": "tiny", "messages": HI}), headers={**origin, "content-type": "text/plain"}
    )
    assert simple.status_code == 400  # what a page may send without a preflight
