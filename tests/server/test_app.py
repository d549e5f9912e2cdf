"""Routes, errors and departures: what every client meets, whatever its dialect."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import Finished, TextDelta
from baltoro.errors import CheckpointError, ContextError, DeadlineError, EngineError, QueueFull
from baltoro.server.body import MAX_BODY_BYTES, MAX_DEPTH
from baltoro.server.openai import ChatBody
from tests.server.conftest import Address
from tests.server.script import USAGE, Script

CHAT = "/v1/chat/completions"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    document = response.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return document["error"]


def test_health_asks_the_engine_and_not_the_socket(server: Address, script: Script) -> None:
    assert server.http.get("/health").status_code == 200
    assert server.http.head("/health").status_code == 200
    script.fault = "no step has ended for 700 s"
    response = server.http.get("/health")
    assert response.status_code == 503
    assert "700 s" in error_of(response)["message"]


def test_stats_counts_and_tells_the_time(server: Address, script: Script) -> None:
    first, second = (server.http.get("/stats").json() for _ in range(2))
    assert first["model"] == "tiny" and first["engine"] == {"steps": 0} and first["store"] is None
    assert first["clock_s"] < second["clock_s"]


def test_models_lists_every_name_the_honest_one_first(server: Address) -> None:
    models = server.openai.models.list().data
    assert [model.id for model in models] == ["tiny", "moonshotai/Kimi-K2-Instruct"]
    assert server.openai.models.retrieve("moonshotai/Kimi-K2-Instruct").model_dump()["root"] == "tiny"
    assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == 4096
    assert error_of(server.http.get("/v1/models/gpt-4"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("POST", "/v1/nope", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)],
)
def test_unknown_paths_and_methods_have_the_envelope_too(server: Address, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (ContextError("too long"), 400, "invalid_request_error"),
        (EngineError("stopped"), 503, "server_error"),
        (QueueFull("1024 wait", retry_after_s=7), 429, "rate_limit_error"),
        (DeadlineError("its time is over"), 504, "server_error"),
        (CheckpointError("a shard is gone"), 500, "server_error"),
        (ZeroDivisionError("secret"), 500, "server_error"),
    ],
)
def test_every_error_of_the_model_has_its_status(
    server: Address, script: Script, raised: Exception, status: int, kind: str
) -> None:
    script.refusal = raised
    response = server.http.post(CHAT, json=GOOD)
    assert response.status_code == status
    assert error_of(response)["type"] == kind
    assert "secret" not in response.text
    assert response.headers.get("retry-after") == ("7" if status == 429 else None)
    script.refusal = None
    assert server.http.post(CHAT, json=GOOD).status_code == 200  # the server lives on


def test_openai_s_client_reads_a_full_queue_as_its_rate_limit(server: Address, script: Script) -> None:
    script.refusal = QueueFull("1024 wait", retry_after_s=7)
    with pytest.raises(openai.RateLimitError) as refused:
        server.openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["retry-after"] == "7"


def test_priority_reaches_the_model_from_both_doors(server: Address, script: Script) -> None:
    assert server.http.post(CHAT, json={**GOOD, "priority": -3}).status_code == 200
    assert server.http.post(CHAT, json=GOOD).status_code == 200
    assert [request.priority for request in script.requests] == [-3, 0]
    body = {"model": "tiny", "prompt": "Hi", "priority": 5}
    server.http.post("/v1/completions", json=body)
    assert [request.priority for request in script.completions] == [5]
    assert error_of(server.http.post(CHAT, json={**GOOD, "priority": "high"}))["param"] == "priority"


def test_every_answer_carries_a_request_id_the_client_s_own_if_it_is_sane(server: Address, script: Script) -> None:
    assert server.http.get("/health").headers["x-request-id"].startswith("req_")
    assert server.http.get("/nope", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert server.http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")
    script.refusal = ZeroDivisionError()
    response = server.http.post(CHAT, json=GOOD, headers={"x-request-id": "mine-8"})
    assert response.headers.get_list("x-request-id") == ["mine-8"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"{bad", "not valid JSON"),
        (b'{"model": "tiny",}', "not valid JSON"),
        (b"\xff\xfe\xfd", "not UTF-8"),
        (b"[1]", "object"),
        (b"null", "object"),
        (b'"x"', "object"),
        (b'{"a": NaN}', "finite"),
        (b'{"temperature": 1e999}', "finite"),
        (b'{"model": "\\ud83d"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"[" * 100_000, "nested"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_broken_body_is_400_and_says_why(server: Address, script: Script, raw: bytes, says: str) -> None:
    response = server.http.post(CHAT, content=raw, headers=JSON)
    assert response.status_code == 400, response.text
    assert says in error_of(response)["message"]


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_another_content_type_is_400_and_told_what_to_send(server: Address, kind: str | None) -> None:
    response = server.http.post(CHAT, content=json.dumps(GOOD), headers={"content-type": kind} if kind else {})
    assert response.status_code == 400
    assert "expected application/json" in error_of(response)["message"]


def test_json_with_a_charset_is_json(server: Address) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert server.http.post(CHAT, content=json.dumps(GOOD), headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_413(server: Address) -> None:
    response = server.http.post(CHAT, content=b'"' + b"x" * MAX_BODY_BYTES + b'"', headers=JSON)
    assert response.status_code == 413
    assert str(MAX_BODY_BYTES) in error_of(response)["message"]


def open_request(server: Address, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(head.encode() + raw)
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("deltas", [[60.0], [TextDelta("Hel"), 60.0]], ids=["before a word", "in the middle"])
def test_a_client_that_leaves_cancels_its_request(server: Address, script: Script, stream: bool, deltas: list) -> None:
    script.deltas = deltas
    connection = open_request(server, {**GOOD, "stream": stream})
    assert script.begun.wait(10)
    if stream and len(deltas) == 2:
        received = b""
        while b"Hel" not in received:
            received += connection.recv(4096)
    assert not script.closed.is_set()
    connection.close()
    assert script.closed.wait(20), "the generator of the answer was not closed"


def test_a_client_that_reads_slowly_and_leaves_cancels_its_request(server: Address, script: Script) -> None:
    """The answer waits in `send`, not in the engine, when the socket goes."""
    script.deltas = [TextDelta("x" * 100_000)] * 100  # more than any socket buffers
    connection = open_request(server, {**GOOD, "stream": True})
    connection.recv(100)
    time.sleep(0.5)
    assert not script.closed.is_set()
    connection.close()
    assert script.closed.wait(20)


def test_answers_run_beside_each_other(server: Address, script: Script) -> None:
    script.deltas = [30.0, Finished("stop", USAGE)]
    waiting = open_request(server, GOOD)
    assert script.begun.wait(10)
    script.deltas = [TextDelta("quick"), Finished("stop", USAGE)]
    assert server.http.post(CHAT, json=GOOD).json()["choices"][0]["message"]["content"] == "quick"
    waiting.close()


def test_the_openapi_document_describes_the_body(server: Address) -> None:
    document = server.http.get("/openapi.json").json()
    reference = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(schema["properties"]) == set(ChatBody.model_fields)
    assert schema["additionalProperties"] is False


# ------------------------------------------------------------------------------------------------- fuzzing

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "tool", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "function", "name", "arguments", "id", "tool_calls", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(sorted(ChatBody.model_fields)), VALUES, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, keep=st.booleans())
def test_no_body_makes_a_500(server: Address, script: Script, body: dict[str, Any], keep: bool) -> None:
    content = json.dumps({**body, **GOOD} if keep else {**GOOD, **body})
    response = server.http.post(CHAT, content=content, headers=JSON)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert error_of(response)["message"]
