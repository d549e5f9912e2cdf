"""An endpoint that a test scripts: a function from a request's body to status and answer, and what was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from baltoro.eval.endpoint import Endpoint
from baltoro.eval.ledger import Ledger

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Scripted:
    """`asked` holds every body that arrived, in order."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def client(self) -> httpx2.AsyncClient:
        def handle(request: httpx2.Request) -> httpx2.Response:
            body = json.loads(request.content)
            self.asked.append(body)
            status, document = self.answer(body)
            if isinstance(document, Exception):
                raise document
            if body.get("stream") and status == 200:
                events = [f"data: {json.dumps(each)}\n\n" for each in document]
                return httpx2.Response(200, text="".join([*events, "data: [DONE]\n\n"]))
            return httpx2.Response(status, json=document)

        return httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://endpoint")


async def no_sleep(seconds: float) -> None:
    pass


def endpoint(scripted: Scripted, folder: Path, **options: Any) -> tuple[Endpoint, Ledger]:
    ledger = Ledger(folder / "ledger.jsonl", {"url": "test"})
    return Endpoint(scripted.client(), "kimi", ledger=ledger, sleep=no_sleep, **options), ledger


def document(
    content: str | None = "Hello.", calls: list[tuple[str, str]] | None = None, finish: str | None = None,
    usage: tuple[int, int] = (10, 5),
) -> dict[str, Any]:  # fmt: skip
    """A whole answer."""
    made = [
        {"id": f"functions.{name}:{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(calls or [])
    ]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if made:
        message["tool_calls"] = made
    return {
        "id": "chat-1", "object": "chat.completion", "created": 1, "model": "kimi",
        "choices": [{"index": 0, "message": message, "finish_reason": finish or ("tool_calls" if made else "stop")}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }  # fmt: skip


class Counter:
    """A server that counts what it is asked, and falls silent at request `hang`."""

    def __init__(self, answer: Answer | None = None) -> None:
        """answer: None calls a function that nobody declared"""
        self._answer = answer or _calling
        self.asked: list[dict[str, Any]] = []
        self.hang: int | None = None
        self.silent = threading.Event()
        self.over = threading.Event()

    @contextmanager
    def serve(self) -> Iterator[str]:
        counter = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                counter.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                if len(counter.asked) == counter.hang:
                    counter.silent.set()
                    counter.over.wait()
                    return
                status, told = counter._answer(counter.asked[-1])
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.over.set()
                server.shutdown()
                thread.join()


def _calling(body: dict[str, Any]) -> tuple[int, Any]:
    return 200, document("", [("none_such", json.dumps({"n": len(json.dumps(body))}))])
