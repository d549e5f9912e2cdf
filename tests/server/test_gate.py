"""A server that asks for keys, as OpenAI's and Anthropic's own clients meet it, with the books open beside it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from fastapi.routing import APIRoute

from baltoro.chat.messages import Finished, TextDelta, TokenDelta
from baltoro.errors import AccountsError, EngineError, QueueFull
from baltoro.server import app as application
from baltoro.server import books as accounting
from baltoro.server import keys as forms
from baltoro.server.app import Served, create_app
from baltoro.server.books import Books, OneKey
from baltoro.server.gate import OPEN
from baltoro.server.keys import Key, Limits
from baltoro.server.prices import Price
from baltoro.server.store import Line, Spending, Store
from tests.server.conftest import Address, serving
from tests.server.script import USAGE, Script

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
GOOD = {"model": "tiny", "messages": HI}
PRICE = Price(input=Decimal(2), cached_input=Decimal(1), output=Decimal(4))
# What a valid body of every route that computes something looks like. A route that is not here is not charged for.
COMPUTES = {
    CHAT: GOOD,
    "/v1/completions": {"model": "tiny", "prompt": "Hi"},
    "/v1/responses": {"model": "tiny", "input": "Hi"},
    "/v1/messages": {**GOOD, "max_tokens": 9},
}
FREE = {"/v1/messages/count_tokens", "/v1/tokenizers/estimate-token-count"}


class Guarded:
    """A server with keys, its database, and how to make keys for it."""

    def __init__(self, script: Script, address: Address, store: Store, folder: Path) -> None:
        self.script = script
        self.address = address
        self.store = store
        self.folder = folder
        self.secrets: list[str] = []

    def key(self, name: str, models: tuple[str, ...] | None = None, **limits: int) -> str:
        secret, key_id = forms.make()
        digest = forms.digest(secret)
        limited = Limits(**limits)
        self.store.add(Key(id=key_id, name=name, digest=digest, created_s=0, models=models, limits=limited))
        self.secrets.append(secret)
        return secret

    def client(self, secret: str, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address.url}/v1", api_key=secret, max_retries=retries, timeout=20)

    def post(self, secret: str, body: dict | None = None, path: str = CHAT, **headers: str) -> httpx.Response:
        return self.address.http.post(
            path, json=GOOD if body is None else body, headers={"authorization": f"Bearer {secret}", **headers}
        )

    def lines(self, name: str, requests: int = 1) -> Line:
        """What a key has used, once so many requests of it are written."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            lines = self.store.report(["key", "model"], key=name)
            if sum(line.requests for line in lines) >= requests:
                break
            time.sleep(0.01)
        (line,) = lines
        assert line.requests == requests
        return line


@pytest.fixture(scope="module")
def _guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("keys")
    url = f"sqlite:///{folder / 'keys.db'}"
    script, store = Script(), Store(url)
    books = Books(Store(url), ("tiny", "moonshotai/Kimi-K2-Instruct"), {"tiny": PRICE})
    served = Served(llm=script, names=("tiny", "moonshotai/Kimi-K2-Instruct"))  # type: ignore[arg-type]
    with serving(create_app(served, books)) as address:
        yield Guarded(script, address, store, folder)
    books.close()
    store.close()


@pytest.fixture
def guarded(_guarded: Guarded) -> Guarded:
    _guarded.script.reset()
    return _guarded


def test_health_readiness_and_the_chat_page_are_open_and_all_else_is_not(guarded: Guarded) -> None:
    for path in (*OPEN, "/web/main.js"):
        assert guarded.address.http.get(path).status_code == 200
    for path in ("/v1/models", "/stats", "/metrics", "/docs", "/openapi.json", "/nope", CHAT, "/health/", "/web"):
        assert guarded.address.http.get(path).status_code == 401, path
        secret = guarded.key(f"reads {path}")
        assert guarded.address.http.get(path, headers={"x-api-key": secret}).status_code != 401


def test_openai_s_client_hears_that_its_key_is_wrong(guarded: Guarded) -> None:
    real = guarded.key("forged")
    forged = real[:-1] + ("A" if real[-1] != "A" else "B")
    for wrong in ("none", forged, forms.make()[0], "ключ", "sk-baltoro-" + "0" * 12 + "-" + "A" * 43):
        raw = {b"authorization": b"Bearer " + wrong.encode()}
        response = guarded.address.http.post(CHAT, json=GOOD, headers=raw)  # type: ignore[arg-type]
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        assert wrong not in response.text
    with pytest.raises(openai.AuthenticationError) as refused:
        guarded.client(forged).chat.completions.create(model="tiny", messages=HI)  # type: ignore[call-overload]
    assert refused.value.code == "invalid_api_key"
    assert guarded.client(real).chat.completions.create(model="tiny", messages=HI).choices[0].message.content == "Hello"  # type: ignore[call-overload]


def test_a_missing_key_is_told_how_to_be_sent(guarded: Guarded) -> None:
    response = guarded.address.http.post(CHAT, json=GOOD)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in response.json()["error"]["message"]
    assert guarded.script.requests == []


def test_a_revoked_an_expired_and_a_changed_key(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "FRESH_S", -1.0)  # read it for every request
    secret = guarded.key("leaves")
    key = next(each for each in guarded.store.all_keys() if each.name == "leaves")
    assert guarded.post(secret).status_code == 200
    guarded.store.change(replace(key, limits=Limits(requests_per_minute=1)))
    assert guarded.post(secret).status_code == 429  # the one before counts
    for gone in (replace(key, revoked_s=5), replace(key, expires_s=5)):
        guarded.store.change(gone)
        response = guarded.post(secret)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    guarded.store.change(key)
    assert guarded.post(secret).status_code == 200


def test_usage_and_its_price_are_written_by_key_and_model(guarded: Guarded) -> None:
    secret = guarded.key("pays")
    guarded.post(secret)  # says two deltas, which the script counts as two tokens
    guarded.post(secret, {**GOOD, "model": "moonshotai/Kimi-K2-Instruct", "n": 3})
    line = guarded.lines("pays", 2)
    assert (line.model, line.prompt_tokens, line.cached_tokens, line.completion_tokens) == ("tiny", 22, 4, 8)
    assert line.cost == 18 * 2000 + 4 * 1000 + 8 * 4000


@pytest.mark.parametrize("path", list(COMPUTES))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_every_route_that_computes_is_charged(guarded: Guarded, path: str, stream: bool) -> None:
    name = f"{path} {stream}"
    guarded.script.deltas = [TokenDelta(1, "a"), Finished("stop", USAGE)] if path == "/v1/completions" else (
        [TextDelta("a"), Finished("stop", USAGE)]
    )  # fmt: skip
    response = guarded.post(guarded.key(name), {**COMPUTES[path], "stream": stream}, path)
    assert response.status_code == 200, response.text
    line = guarded.lines(name)
    assert (line.prompt_tokens, line.completion_tokens) == (11, 1)


@pytest.mark.parametrize("path", list(COMPUTES))
def test_every_route_that_computes_refuses_in_its_dialect_what_a_budget_has_no_room_for(
    guarded: Guarded, path: str
) -> None:
    asked = len(guarded.script.requests) + len(guarded.script.completions)
    response = guarded.post(guarded.key(f"short {path}", token_budget=5), COMPUTES[path], path)  # the prompt is 11
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    if path == "/v1/messages":
        assert (response.status_code, error["type"]) == (402, "billing_error")
    else:
        assert (response.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert len(guarded.script.requests) + len(guarded.script.completions) == asked


def test_no_route_was_forgotten() -> None:
    assert _posts() == COMPUTES.keys() | FREE, "is it charged? say so above"


@pytest.mark.parametrize("path", sorted(FREE))
def test_what_only_counts_tokens_asks_for_a_key_and_costs_nothing(guarded: Guarded, path: str) -> None:
    secret = guarded.key(f"counts {path}", token_budget=1, requests_per_minute=1)
    assert guarded.address.http.post(path, json=GOOD).status_code == 401
    assert guarded.post(secret, GOOD, path).status_code == 200
    assert guarded.post(secret, GOOD, path).status_code == 429  # it is a request like any other
    assert guarded.store.report(["key"], key=f"counts {path}") == []


def _posts() -> set[str]:
    """The paths that take a POST."""
    found: set[str] = set()
    real = application.FastAPI.include_router

    class Seeing(application.FastAPI):
        def include_router(self, router, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
            found.update(each.path for each in router.routes if isinstance(each, APIRoute) and "POST" in each.methods)
            real(self, router, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "FastAPI", Seeing)
        create_app(Served(llm=Script(), names=("tiny",)))  # type: ignore[arg-type]
    return found


def leave_in_the_middle(guarded: Guarded, secret: str, *, stream: bool, until: bytes | None) -> None:
    raw = json.dumps({**GOOD, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", guarded.address.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        assert guarded.script.begun.wait(10)
        received = b""
        while until is not None and until not in received:
            received += connection.recv(4096)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_in_the_middle_is_charged_until_then(guarded: Guarded, stream: bool) -> None:
    name = f"leaves early {stream}"
    secret = guarded.key(name, concurrent=1)
    guarded.script.deltas = [TextDelta("Hel"), TextDelta("lo"), 60.0, TextDelta("never"), Finished("stop", USAGE)]
    leave_in_the_middle(guarded, secret, stream=stream, until=b'"lo"' if stream else None)
    line = guarded.lines(name)
    assert (line.prompt_tokens, line.completion_tokens) == (11, 2)
    guarded.script.deltas = [Finished("stop", USAGE)]
    assert guarded.post(secret).status_code == 200  # its place is free again


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (EngineError("stopped"), 503),
        (QueueFull("1024 wait", retry_after_s=7), 429),
        (ZeroDivisionError("ours"), 500),
    ],
)
def test_what_fails_before_it_began_costs_nothing(guarded: Guarded, raised: Exception, status: int) -> None:
    secret = guarded.key(f"unlucky {status}", concurrent=1)
    guarded.script.refusal = raised
    assert guarded.post(secret).status_code == status
    guarded.script.refusal = None
    assert guarded.post(secret, {"model": "unknown"}).status_code == 400
    assert guarded.post(secret).status_code == 200
    assert guarded.lines(f"unlucky {status}").prompt_tokens == 11


def test_what_fails_in_the_middle_of_a_stream_costs_what_was_told(guarded: Guarded) -> None:
    guarded.script.deltas = [TextDelta("a"), EngineError("stopped")]
    assert "event: error" in guarded.post(guarded.key("cut"), {**GOOD, "stream": True}).text
    assert guarded.lines("cut").completion_tokens == 1


def test_requests_a_minute_are_openai_s_rate_limit(guarded: Guarded) -> None:
    secret = guarded.key("hasty", requests_per_minute=2, tokens_per_minute=1000)
    answers = [guarded.post(secret) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["1", "0", "0"]
    assert {each.headers["x-ratelimit-limit-requests"] for each in answers} == {"2"}
    assert answers[0].headers["x-ratelimit-remaining-tokens"] == str(1000 - 11)
    assert 55 <= int(answers[2].headers["retry-after"]) <= 60
    with pytest.raises(openai.RateLimitError) as refused:
        guarded.client(secret).chat.completions.create(model="tiny", messages=HI)  # type: ignore[call-overload]
    assert refused.value.code == "rate_limit_exceeded"
    assert "x-ratelimit-limit-requests" not in guarded.post(guarded.key("free")).headers


def test_tokens_a_minute_hold_prompt_and_max_tokens_before_anything_is_computed(guarded: Guarded) -> None:
    secret = guarded.key("wordy", tokens_per_minute=100)
    asked = len(guarded.script.requests)
    refused = guarded.post(secret, {**GOOD, "max_tokens": 90})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "101 tokens, this key has 100" in refused.json()["error"]["message"]
    assert guarded.post(secret, {**GOOD, "max_tokens": 30, "n": 3}).status_code == 429
    assert guarded.post(secret, {"model": "tiny", "prompt": ["a"] * 10}, "/v1/completions").status_code == 429
    assert len(guarded.script.requests) == asked
    assert guarded.post(secret, {**GOOD, "max_tokens": 89}).status_code == 200
    assert guarded.post(secret, {**GOOD, "max_tokens": 80}).headers["retry-after"]  # 13 were really used


def test_requests_at_once_are_bounded(guarded: Guarded) -> None:
    secret = guarded.key("parallel", concurrent=1)
    guarded.script.deltas = [TextDelta("a"), 60.0]
    with guarded.client(secret).chat.completions.create(model="tiny", messages=HI, stream=True) as stream:  # type: ignore[call-overload]
        next(iter(stream))
        refused = guarded.post(secret)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert guarded.post(guarded.key("another"), {"model": "unknown"}).status_code == 400
    guarded.lines("parallel")
    guarded.script.deltas = [Finished("stop", USAGE)]
    assert guarded.post(secret).status_code == 200


def test_a_budget_that_is_used_up_is_insufficient_quota_and_not_tried_again(guarded: Guarded) -> None:
    secret = guarded.key("poor", money_budget=30_000)
    assert guarded.post(secret).status_code == 200  # 18,000 + 1,000 x 2 + 8,000, and the prompt of the next is too much
    before = len(guarded.script.requests)
    with pytest.raises(openai.RateLimitError) as refused:
        guarded.client(secret, retries=5).chat.completions.create(model="tiny", messages=HI)  # type: ignore[call-overload]
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert "0.00003" in refused.value.message
    assert len(guarded.script.requests) == before
    assert guarded.address.http.get("/v1/models", headers={"x-api-key": secret}).status_code == 200


def test_a_budget_is_what_was_used_here_and_elsewhere_each_once(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "FRESH_S", -1.0)  # the database is read for every request
    secret = guarded.key("shared", token_budget=130)  # a request is 11 + 2 tokens
    assert [guarded.post(secret).status_code for _ in range(5)] == [200] * 5
    elsewhere = Spending(
        key_id=forms.id_of(secret) or "", day="2020-01-01", model="other", requests=1, prompt_tokens=20,
        cached_tokens=0, completion_tokens=6, cost=0,
    )  # fmt: skip
    guarded.store.spend([elsewhere])
    assert [guarded.post(secret).status_code for _ in range(5)] == [200] * 3 + [429] * 2  # 91, 104, 117, 130


def test_a_key_for_another_model_is_forbidden(guarded: Guarded) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        guarded.client(guarded.key("elsewhere", models=("other",))).chat.completions.create(model="tiny", messages=HI)  # type: ignore[call-overload]
    assert refused.value.code == "model_not_found"


def test_anthropic_s_client_hears_the_same_in_its_own_words(guarded: Guarded) -> None:
    def ask(secret: str) -> Exception:
        client = anthropic.Anthropic(base_url=guarded.address.url, api_key=secret, max_retries=1)
        with client, pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.create(model="tiny", max_tokens=5, messages=HI)
        return refused.value

    def kind(error: Exception) -> str:
        assert error.body["type"] == "error" and error.body["request_id"].startswith("req_")  # type: ignore[attr-defined]
        return error.body["error"]["type"]  # type: ignore[attr-defined]

    wrong = ask("sk-ant-nothing")
    assert isinstance(wrong, anthropic.AuthenticationError) and kind(wrong) == "authentication_error"
    hasty = ask(guarded.key("hasty claude", requests_per_minute=0))
    assert isinstance(hasty, anthropic.RateLimitError) and kind(hasty) == "rate_limit_error"
    assert hasty.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert not any(name.startswith("x-ratelimit") for name in hasty.response.headers)
    poor = ask(guarded.key("poor claude", token_budget=0))
    assert poor.status_code == 402 and kind(poor) == "billing_error"  # type: ignore[attr-defined]


def test_secrets_are_in_no_file_and_no_log(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    secret = guarded.key("whispers")
    guarded.script.refusal = ZeroDivisionError()
    guarded.post(secret)
    guarded.post(secret + "x")
    for path in guarded.folder.iterdir():
        kept = path.read_bytes()
        assert not any(each.encode() in kept or each[24:].encode() in kept for each in guarded.secrets)
    assert not any(each[24:] in caplog.text for each in guarded.secrets)


# ------------------------------------------------------------------------------------ the database fails


class Breaking(Store):
    """A database that fails while `broken` is set."""

    broken = False

    def find(self, key_id: str) -> Key | None:
        self._fail()
        return super().find(key_id)

    def spend(self, spendings) -> None:  # type: ignore[no-untyped-def]
        self._fail()
        super().spend(spendings)

    def _fail(self) -> None:
        if self.broken:
            raise AccountsError("postgresql://secret-host: connection refused")


@pytest.fixture
def breaking(tmp_path: Path) -> Iterator[tuple[Guarded, Breaking, Callable[[], None]]]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    script, store = Script(), Breaking(url)
    books = Books(store, ("tiny",), {})
    with serving(create_app(Served(llm=script, names=("tiny",)), books)) as address:  # type: ignore[arg-type]
        reader = Store(url)
        yield Guarded(script, address, reader, tmp_path), store, books.close
        reader.close()
    books.close()


def test_usage_that_cannot_be_written_is_written_later(breaking: tuple[Guarded, Breaking, Callable[[], None]]) -> None:
    guarded, store, close = breaking
    secret = guarded.key("patient")
    guarded.post(secret)
    guarded.lines("patient", 1)
    store.broken = True
    assert [guarded.post(secret).status_code for _ in range(2)] == [200, 200]  # the key is known for five seconds
    store.broken = False
    guarded.post(secret)
    assert guarded.lines("patient", 4).prompt_tokens == 44
    store.broken = True
    guarded.post(secret)
    store.broken = False
    close()  # the last chance
    assert guarded.lines("patient", 5).prompt_tokens == 55


def test_without_the_database_nobody_new_comes_in(breaking: tuple[Guarded, Breaking, Callable[[], None]]) -> None:
    guarded, store, _ = breaking
    secret = guarded.key("early")
    store.broken = True
    response = guarded.post(secret)
    assert response.status_code == 503
    assert "secret-host" not in response.text
    store.broken = False
    assert guarded.post(secret).status_code == 200


def test_a_single_key_lets_in_who_has_it() -> None:
    secret = "correct horse battery staple"
    served = Served(llm=Script(), names=("tiny",))  # type: ignore[arg-type]
    with serving(create_app(served, OneKey(secret))) as address:
        for headers, status in (
            ({"authorization": f"Bearer {secret}"}, 200),
            ({"x-api-key": secret}, 200),
            ({"x-api-key": secret[:-1]}, 401),
            ({}, 401),
        ):
            assert address.http.post(CHAT, json=GOOD, headers=headers).status_code == status
