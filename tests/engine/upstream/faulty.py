"""An upstream over loopback HTTP that speaks all three dialects, says what an engine of ours says, and fails on demand.

The model is tests.engine.fake's hash of everything seen, or another one that our own Engine runs. Structures are
recorded and ignored: the worst grammar an upstream can have. What goes wrong is a list of faults, one for each POST.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from baltoro.engine.engine import Engine
from baltoro.engine.request import Request, SamplingParams, Step

SEPARATORS = "\u2028\x85\u2029\x0b"  # end lines for Python, but not in a stream of events, where texts have them


@dataclass
class Fault:
    """What happens to one POST. Without any field it goes well."""

    reset: bool = False  # the connection is closed before an answer
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None  # tokens that are told before `then`
    then: str = (
        "close"  # close: the connection; hang: say nothing more; garble: no JSON; error: as an event; end: early
    )


class Only:
    """A constraint for our engine: the same ids all the time."""

    def __init__(self, allowed: list[int], vocab_size: int) -> None:
        self._mask = np.isin(np.arange(vocab_size), allowed)

    def mask(self) -> np.ndarray:
        return self._mask

    def advance(self, token: int) -> None:
        pass


class FaultyUpstream:
    def __init__(self, engine: Engine, dialect: str) -> None:
        self.engine, self.dialect = engine, dialect
        self.faults: list[Fault] = []
        self.bodies: list[dict[str, Any]] = []  # of every POST, probes not among them
        self.partial: set[int] = set()  # llama-server does not stream these: they end inside a character
        self.probed = threading.Event()  # asked for the one token that shows its health
        self.patient = threading.Event()  # set: /health answers at once, else when it is
        self.patient.set()
        self.asked = threading.Event()  # for /health
        self.down = False  # nobody answers
        self.context = engine.max_context  # as it says
        self.named = threading.Event()  # somebody has asked what it is
        self.ill = False  # health and models answer, generation does not
        self.left = threading.Event()  # a client has gone before its answer's end
        self.holding = threading.Event()  # an answer hangs
        upstream = self

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # else the sixth connection at once waits a second
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None: ...

            def do_GET(self) -> None:
                upstream.get(self)

            def do_POST(self) -> None:
                with suppress(ConnectionError):
                    upstream.post(self)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.engine.stop(drain=False)

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        if self.down:
            return drop(handler)
        owner = {"vllm": "vllm", "sglang": "sglang", "llama-server": "llamacpp"}[self.dialect]
        size = self.engine.vocab_size
        card = {"id": "m", "owned_by": owner, "max_model_len": self.context, "meta": {"n_vocab": size}}
        if handler.path == "/health":
            self.asked.set()
            assert self.patient.wait(20)
        self.named.set()
        answers: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [card]},
            "/props": {"default_generation_settings": {"n_ctx": self.engine.max_context}},
            "/health": {"status": "ok"},
        }
        return plain(handler, 200, answers[handler.path])

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        path = {"vllm": "/v1/completions", "sglang": "/generate", "llama-server": "/completion"}[self.dialect]
        assert handler.path == path
        prompt, wanted = read_body(self.dialect, body)
        fault = Fault()
        if prompt == [0] and wanted.max_tokens == 1:
            self.probed.set()
            fault = Fault(status=500) if self.ill else fault
        else:
            self.bodies.append(body)
            fault = self.faults.pop(0) if self.faults else fault
        if self.down or fault.reset:
            return drop(handler)
        if fault.status != 200:
            return plain(handler, fault.status, {"error": {"message": f"fault {fault.status}"}}, fault.headers)
        allowed = read_allowed(self.dialect, body, self.engine.vocab_size)
        steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        constraint = None if allowed is None else Only(allowed, self.engine.vocab_size)
        request = Request(prompt=prompt, sampling=wanted, sink=steps.put, constraint=constraint)  # type: ignore[arg-type]
        self.engine.submit(request)
        try:
            return self._answer(handler, steps, fault, stream=body["stream"])
        except ConnectionError:
            self.left.set()
            raise
        finally:
            self.engine.cancel(request)

    def _answer(self, handler: BaseHTTPRequestHandler, steps: Any, fault: Fault, *, stream: bool) -> None:
        tokens: list[int] = []
        if not stream:
            while True:
                step = steps.get(timeout=20)
                tokens.append(step.token)
                if step.finish is not None:
                    last = {"tokens": tokens, "stop": True, "tokens_predicted": len(tokens)}
                    return plain(handler, 200, last)
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()

        def say(data: str) -> None:
            handler.wfile.write(f"data: {data}\r\n\r\n".encode())
            handler.wfile.flush()

        handler.wfile.write(b": a comment, as proxies send them\n\n")
        while True:
            if fault.after == len(tokens):
                if fault.then == "close":
                    return drop(handler)
                if fault.then == "garble":
                    return say('{"choices": [{"tok')
                if fault.then == "error":
                    return say('{"error": {"message": "out of memory"}}')
                if fault.then == "end":
                    return say("[DONE]")
                self.holding.set()
                select.select([handler.connection], [], [], 20)  # readable: the client has closed it
                self.left.set()
                return None
            step = steps.get(timeout=20)
            tokens.append(step.token)
            for event in events(self.dialect, tokens, step.finish is not None, self.partial):
                say(json.dumps(event | {"text": SEPARATORS}, ensure_ascii=False))
            if step.finish is not None:
                return say("[DONE]")


def events(dialect: str, tokens: list[int], over: bool, partial: set[int]) -> Iterator[dict[str, Any]]:
    token, count = tokens[-1], len(tokens)
    if dialect == "vllm":
        yield {"choices": [{"index": 0, "text": "", "token_ids": [token], "finish_reason": "stop" if over else None}]}
        if over:
            yield {"choices": [], "usage": {}}
    elif dialect == "sglang":
        yield {"output_ids": tokens, "meta_info": {"completion_tokens": count, "finish_reason": {} if over else None}}
    else:
        if token not in partial:
            yield {"tokens": [token], "stop": False, "tokens_predicted": count}
        if over:
            yield {"tokens": [], "stop": True, "tokens_predicted": count}


def read_body(dialect: str, body: dict[str, Any]) -> tuple[list[int], SamplingParams]:
    """Greedy only: what the tests compare."""
    if dialect == "vllm":
        stops, size, least = frozenset(body["stop_token_ids"]), body["max_tokens"], body["min_tokens"]
        return body["prompt"], SamplingParams(max_tokens=size, min_tokens=least, stop_token_ids=stops)
    if dialect == "sglang":
        inner = body["sampling_params"]
        stops, size, least = frozenset(inner["stop_token_ids"]), inner["max_new_tokens"], inner["min_new_tokens"]
        return body["input_ids"], SamplingParams(max_tokens=size, min_tokens=least, stop_token_ids=stops)
    return body["prompt"], SamplingParams(max_tokens=body["n_predict"])


def read_allowed(dialect: str, body: dict[str, Any], vocab_size: int) -> list[int] | None:
    if dialect == "vllm":
        return body.get("allowed_token_ids")
    if dialect == "sglang":
        refused = body["sampling_params"].get("logit_bias")
        return None if refused is None else [token for token in range(vocab_size) if str(token) not in refused]
    if "grammar" in body:
        return [int(word.strip("<[]>")) for word in body["grammar"].removeprefix("root ::= ").split(" | ")]
    refused = [token for token, bias in body.get("logit_bias", ()) if bias is False]
    return [token for token in range(vocab_size) if token not in refused] if refused else None


def plain(handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **(headers or {}),
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
