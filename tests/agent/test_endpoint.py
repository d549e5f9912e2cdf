from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from baltoro.agent.act import act
from baltoro.agent.endpoint import Endpoint, open_endpoint
from baltoro.agent.loop import Settings
from baltoro.agent.sandbox import Unconfined
from baltoro.agent.workspace import Workspace
from baltoro.chat.messages import ChatRequest, Message
from baltoro.errors import EngineError, RequestError
from baltoro.scripted import ScriptedLLM
from baltoro.server.app import Served, create_app
from tests.agent.script import said

ASKED = ChatRequest(messages=(Message(role="user", content="hello"),))


def test_the_loop_over_our_own_server_is_the_loop_here(tmp_path: Path) -> None:
    script = [
        said("I write.", ("write", {"path": "a.txt", "content": "ä\n"}), ("read", {"path": "a.txt"})),
        said("", ("shell", {"command": "cat a.txt"}), first=2),
        "done",
    ]
    config = uvicorn.Config(
        create_app(Served(llm=ScriptedLLM(script, max_context=100_000), names=("scripted",))), port=0, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        episodes = []
        with Endpoint(f"http://127.0.0.1:{port}") as endpoint:
            assert endpoint.name == "scripted"
            for number, model in enumerate((endpoint, ScriptedLLM(script))):
                (tmp_path / str(number)).mkdir()
                place = Workspace(tmp_path / str(number))
                box = Unconfined(place, lambda _: True)
                episodes.append(act(model, "write", place, sandbox=box, settings=Settings(seed=3)))
    finally:
        server.should_exit = True
        thread.join()
    there, here = episodes
    assert there.end == here.end == "done"
    assert there.messages == here.messages


class Server(ThreadingHTTPServer):
    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.headers.get("authorization", ""), body))
        status, answer = self.server.answers.pop(0)
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("baltoro.agent.endpoint.time.sleep", lambda _: None)
    servers: list[Server] = []

    def serve(*answers: tuple[int, Any]) -> tuple[Endpoint, Server]:
        server = Server(list(answers))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1/", model="m", key="k"), server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
WHOLE = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}


def test_a_busy_server_is_asked_again(serve: Any) -> None:
    endpoint, server = serve((429, {}), (503, b"no json"), (200, WHOLE))
    answer = endpoint.complete(ASKED)
    assert (answer.content, answer.usage.cached_tokens) == ("hi", 4)
    assert [key for key, _ in server.asked] == ["Bearer k"] * 3
    assert server.asked[0][1] == {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.6}


@pytest.mark.parametrize(
    "answer", [(400, {"error": "bad"}), (200, b"no json"), (200, {}), (200, []), (200, {"choices": [{}]}), (404, b"")]
)
def test_what_is_no_answer_is_an_error_and_asked_once(serve: Any, answer: tuple[int, Any]) -> None:
    endpoint, server = serve(answer)
    with pytest.raises(EngineError):
        endpoint.complete(ASKED)
    assert len(server.asked) == 1


def test_what_an_endpoint_is_not_asked_for_is_refused(serve: Any) -> None:
    endpoint, server = serve()
    for request in (
        ChatRequest(messages=(), logprobs=0),
        ChatRequest(messages=(), top_k=3),
        ChatRequest(messages=(), stop=("x",)),
    ):
        with pytest.raises(RequestError, match="leave it out"):
            endpoint.complete(request)
    assert not server.asked


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baltoro.agent.endpoint.time.sleep", lambda _: None)
    with pytest.raises(EngineError, match="is the server there"):
        open_endpoint("http://127.0.0.1:9", model=None, key=None)
