"""A line for every request: what stands in it, what must not, and when there is none."""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Iterator

import httpx
import pytest

from baltoro.chat.messages import Finished, TextDelta, TokenDelta
from baltoro.errors import EngineError
from baltoro.server.access import AccessLog
from baltoro.server.app import Served, create_app
from baltoro.server.books import OneKey
from baltoro.server.logs import JsonLines, TextLines
from tests.server.conftest import Address, serving
from tests.server.script import USAGE, Script

SECRET = "my-secret-prompt"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}]}
KEY = {"authorization": "Bearer a-key-of-mine"}


class Heard(logging.Handler):
    """What all loggers say, in both formats."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._requests: queue.SimpleQueue[tuple[dict, str]] = queue.SimpleQueue()
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        lines = JsonLines().format(record), TextLines().format(record)
        self.lines += lines
        if record.name == "baltoro.access":
            self._requests.put((json.loads(lines[0]), lines[1]))
        if record.exc_info:
            self._faults.put(lines[0])

    def request(self) -> tuple[dict, str]:
        """The next line about a request: it comes behind the answer."""
        return self._requests.get(timeout=20)

    def fault(self) -> str:
        """The next traceback, which uvicorn prints behind the answer too."""
        return self._faults.get(timeout=20)


@pytest.fixture(scope="module")
def _watched() -> Iterator[tuple[Script, Address]]:
    script = Script()
    served = Served(llm=script, names=("tiny",))  # type: ignore[arg-type]
    with serving(create_app(served, OneKey("a-key-of-mine"), watch=[AccessLog])) as address:
        yield script, address


@pytest.fixture
def watched(_watched: tuple[Script, Address]) -> Address:
    _watched[0].reset()
    return _watched[1]


@pytest.fixture
def script(_watched: tuple[Script, Address]) -> Script:
    return _watched[0]


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    loggers = {logging.getLogger(name): level for name, level in (("baltoro", "DEBUG"), ("uvicorn.error", "ERROR"))}
    before = {each: each.level for each in loggers}
    for each, level in loggers.items():
        each.addHandler(handler)
        each.setLevel(level)
    yield handler
    for each, number in before.items():
        each.removeHandler(handler)
        each.setLevel(number)


def test_a_chat_s_line_says_who_asked_what_it_cost_and_how_long_it_took(watched: Address, heard: Heard) -> None:
    answer = watched.http.post("/v1/chat/completions?api-key=x", json=BODY, headers=KEY | {"x-request-id": "mine-1"})
    assert answer.status_code == 200
    facts, text = heard.request()
    seconds = facts.pop("seconds")
    client = facts.pop("client")
    assert 0 < seconds < 20
    assert client.startswith("127.0.0.1:")
    del facts["time"], facts["message"]
    assert facts == {
        "level": "info", "logger": "baltoro.access", "request_id": "mine-1", "method": "POST", "status": 200,
        "path": "/v1/chat/completions", "model": "tiny", "key": "BALTORO_API_KEY",
        "prompt_tokens": 11, "cached_tokens": 2, "completion_tokens": 2, "finish": [],
    }  # fmt: skip
    request = f'{client} "POST /v1/chat/completions HTTP/1.1" 200 OK {seconds:.3f} s mine-1'
    assert text.endswith(f"{request} key BALTORO_API_KEY, 11 + 2 tokens")
    assert SECRET not in "".join(heard.lines)


@pytest.mark.parametrize(
    ("n", "path", "body", "told"),
    [
        (3, "/v1/chat/completions", BODY | {"n": 3}, (11, 6)),
        (1, "/v1/completions", {"model": "tiny", "prompt": ["a", "b"]}, (22, 4)),
        (1, "/v1/messages", BODY | {"max_tokens": 5}, (11, 2)),
        (1, "/v1/responses", {"model": "tiny", "input": SECRET}, (11, 2)),
    ],
)
def test_tokens_of_every_dialect_are_told_each_prompt_once(
    watched: Address, script: Script, heard: Heard, n: int, path: str, body: dict, told: tuple[int, int]
) -> None:
    if path == "/v1/completions":
        script.deltas = [TokenDelta(1, "a", 0), TokenDelta(2, "b", 1), Finished("stop", USAGE)]
    assert watched.http.post(path, json=body, headers=KEY).status_code == 200
    facts, _ = heard.request()
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == told
    assert facts["model"] == "tiny"


def test_what_is_refused_has_a_line_without_tokens(watched: Address, heard: Heard) -> None:
    assert watched.http.post("/v1/chat/completions", json=BODY).status_code == 401
    facts, text = heard.request()
    assert (facts["status"], facts["level"]) == (401, "info")
    assert "prompt_tokens" not in facts
    assert " 401 Unauthorized " in text
    assert "tokens" not in text


def test_a_path_that_a_client_invents_stays_one_line(watched: Address, heard: Heard) -> None:
    watched.http.get("/%0Aforged%20line%22", headers=KEY)
    facts, text = heard.request()
    assert facts["path"] == "/%0Aforged%20line%22"
    assert "\n" not in text


def test_faults_of_ours_are_warnings_and_tell_no_text(watched: Address, script: Script, heard: Heard) -> None:
    script.refusal = KeyError(SECRET)
    assert watched.http.post("/v1/chat/completions", json=BODY, headers=KEY).status_code == 500
    facts, _ = heard.request()
    assert (facts["status"], facts["level"]) == (500, "warning")
    assert "prompt_tokens" not in facts
    assert "KeyError" in heard.fault()
    assert SECRET not in "".join(heard.lines)


def test_a_stream_has_its_line_when_it_is_over(watched: Address, script: Script, heard: Heard) -> None:
    script.deltas = [TextDelta("a"), 0.2, EngineError("broken")]
    with watched.http.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}, headers=KEY) as answer:
        answer.read()
    facts, _ = heard.request()
    assert (facts["status"], facts["completion_tokens"]) == (200, 1)
    assert facts["seconds"] >= 0.2


def test_who_leaves_before_the_answer_is_499(watched: Address, script: Script, heard: Heard) -> None:
    script.deltas = [TextDelta("a"), 60.0]
    with pytest.raises(httpx.ReadTimeout):
        watched.http.post("/v1/chat/completions", json=BODY, headers=KEY, timeout=0.3)
    assert script.all_closed(1)
    assert heard.request()[0]["status"] == 499


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_are_told_in_detail_only(watched: Address, script: Script, heard: Heard, path: str) -> None:
    assert watched.http.get(path, headers=KEY).status_code == 200
    assert heard.request()[0]["level"] == "debug"
    if path != "/metrics":
        script.fault = "dead"
        assert watched.http.get(path, headers=KEY).status_code == 503
        assert heard.request()[0]["level"] == "warning"
