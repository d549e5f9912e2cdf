"""Bodies that almost fit: valid ones of every dialect, broken in one or two places; and requests that are no HTTP."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from baltoro.server import openapi

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city"],
}
FUNCTION = {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_x", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
# A body for each path, with as many of its fields as fit together. Answers are short.
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny", "max_tokens": 3, "seed": 1, "temperature": 0.7, "top_p": 0.9, "n": 1, "stop": ["x"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "How is the weather?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_x", "content": "Sunny."},
            {"role": "user", "name": "ada", "content": "And tomorrow?"},
        ],
        "tools": [CHAT_TOOL], "tool_choice": "auto", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2,
        "logit_bias": {"5": 1}, "min_p": 0.1, "top_k": 5, "stream": False, "thinking": {"type": "disabled"},
    },
    "/v1/completions": {
        "model": "tiny", "prompt": ["Hello", "Good"], "max_tokens": 2, "n": 1, "echo": True, "logprobs": 1,
        "stop": "x", "seed": 3, "stream": False, "return_token_ids": True,
    },
    "/v1/responses": {
        "model": "tiny", "max_output_tokens": 3, "instructions": "Be brief.", "store": False,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "Sunny."},
            {"type": "reasoning", "summary": []},
        ],
        "tools": [{"type": "function", **FUNCTION}, {"type": "web_search"}], "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}, "stream": False,
    },
    "/v1/messages": {
        "model": "tiny", "max_tokens": 3, "system": [{"type": "text", "text": "Be brief."}], "temperature": 0.5,
        "messages": [
            {"role": "user", "content": "How is the weather?"},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}]},
        ],
        "tools": [{"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"}, "stop_sequences": ["x"], "thinking": {"type": "disabled"}, "stream": False,
    },
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/tokenizers/estimate-token-count": {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
}  # fmt: skip
CONTROL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{}<|im_end|>"
)


class Raw(str):
    """Spelled into the JSON as it is, valid or not."""


ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"": None}, 2**31, -(2**63), 2**64, 10**300, 1e308,
    Raw("1e999"), Raw("NaN"), Raw("-Infinity"), Raw("9" * 5000), Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw("01"),
    Raw("[" * 90 + "]" * 90), Raw("[" * 5000), Raw("{" * 200), Raw("'x'"), Raw('"\x00"'), Raw('"\\u0000"'), "\u2028",
    CONTROL, "x" * 20_000, "../../etc/passwd", "a\r\nset-cookie: b", "type", "named", "tiny", [1] * 300,
    {"type": "object", "properties": {}}, {"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"type": "function"},
    {"pattern": "(a+)+$"}, {"type": "text", "text": None}, {"type": "image", "source": {}},
]  # fmt: skip
CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "",
    "application",
]


@dataclass(frozen=True, slots=True)
class Malformed:
    path: str
    body: bytes
    content_type: str = "application/json"
    length: int | None = None  # what Content-Length says; None: the truth


def requests(count: int, seed: int) -> Iterator[Malformed]:
    chance = random.Random(seed)
    for _ in range(count):
        path = chance.choice(sorted(VALID))
        document = copy.deepcopy(VALID[path])
        if chance.random() < 0.75:
            for _ in range(chance.choice([1, 1, 2])):
                _break_document(document, chance)
            yield Malformed(path, _spelled(document).encode("utf-8", "surrogatepass"))
        elif chance.random() < 0.7:
            yield Malformed(path, _broken_bytes(json.dumps(document).encode(), chance))
        else:
            body = json.dumps(document).encode()
            yield chance.choice(
                [
                    Malformed(path, body, content_type=chance.choice(CONTENT_TYPES)),
                    Malformed(path, body, length=chance.randrange(len(body))),
                    Malformed(path, body, length=len(body) + chance.randrange(1, 100)),
                    Malformed(path, body, length=chance.choice([-1, 10**30])),
                ]
            )


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place of a document: what holds it, and under which key."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found.append((value, key))
        _places(each, found)
    return found


def _break_document(document: dict[str, Any], chance: random.Random) -> None:
    holder, key = chance.choice(_places(document, []) or [(document, "model")])
    kind = chance.randrange(6)
    if kind <= 2:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif kind == 3:
        del holder[key]
    elif isinstance(holder, list):
        holder.extend([copy.deepcopy(holder[key])] * chance.choice([1, 200]))
    elif kind == 4:
        holder[chance.choice(["x", "type", "name", "strict", key + "s", "\ud800", "__proto__"])] = copy.deepcopy(
            chance.choice(ODD)
        )
    else:
        holder[key] = [holder[key]]


def _spelled(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    return json.dumps(value)


def _broken_bytes(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body))
    ways: list[Callable[[], bytes]] = [
        lambda: body[:at],
        lambda: body[at:],
        lambda: body[:at] + chance.randbytes(3) + body[at:],
        lambda: body[:at] + bytes([body[at] ^ (1 << chance.randrange(8))]) + body[at + 1 :],
        lambda: body[:at] + body[at - 9 : at] * 50 + body[at:],
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body.decode().encode("utf-16"),
        lambda: chance.randbytes(200),
        lambda: body + body,
        lambda: b"",
    ]
    return chance.choice(ways)()


# ------------------------------------------------------------------------------------------- asked, and judged


def ask(port: int, request: Malformed) -> tuple[int, bytes] | None:
    """Status and body of the first answer; None where the server waits for more than there is, and we leave."""
    length = len(request.body) if request.length is None else request.length
    head = f"POST {request.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
    if request.content_type:
        head += f"content-type: {request.content_type}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n" + request.body)
        if len(request.body) < length < 10**9:
            return None
        received = b""
        try:
            while more := connection.recv(65536):
                received += more
        except ConnectionResetError:  # what we sent behind the body was never read
            pass
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), body


def complaint(request: Malformed, status: int, body: bytes) -> str | None:
    """What is wrong with an answer."""
    if status == 200:
        return None
    if status not in (400, 404, 413):
        return f"status {status}"
    if request.length in (-1, 10**30):  # no request was understood, so there is no dialect
        error = json.loads(body)["error"]
        return None if error["message"] and error["type"] == "invalid_request_error" else "no envelope"
    dialect = openapi.AnthropicError if request.path.startswith("/v1/messages") else openapi.OpenAIError
    try:
        told = dialect.model_validate_json(body)
    except ValidationError as error:
        return f"not the envelope: {error}"
    return None if told.error.message else "an error without a message"


class Watched:
    """The app, and what its event loop has to do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        await self._app(scope, receive, send)

    def tasks(self) -> int:
        return len(asyncio.all_tasks(self._loop)) if self._loop is not None else 0

    def settled(self, most: int, within_s: float = 20) -> int:
        """How many tasks there are, as soon as they are not more than `most`."""
        deadline = time.monotonic() + within_s
        while self.tasks() > most and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.tasks()
