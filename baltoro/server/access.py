"""ASGI: a line in the log for every request, when it has been answered.

    127.0.0.1:40312 "POST /v1/chat/completions HTTP/1.1" 200 OK 0.412 s req_6f... key alice, 11 + 4 tokens

The facts stand beside the line for logs in JSON. A query is left out, since some clients put keys there, and so is
everything that a client says in a body.
"""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.server import tally
from baltoro.server.gate import key_name

_log = logging.getLogger("baltoro.access")
_PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds, by programs


class AccessLog:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s, status = time.monotonic(), tally.GONE
        counted = tally.of(scope)

        async def see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, see)
        finally:
            level = _level(scope["path"], status, counted.finishes)
            if _log.isEnabledFor(level):
                facts = _facts(scope, status, time.monotonic() - began_s, counted)
                _log.log(level, "%s", _line(scope, facts), extra={"facts": facts})


def _level(path: str, status: int, finishes: list[str]) -> int:
    if status >= 500 or "error" in finishes:
        return logging.WARNING
    return logging.DEBUG if path in _PROBES and status == 200 else logging.INFO


def _facts(scope: Scope, status: int, seconds: float, counted: tally.Tally) -> dict[str, Any]:
    client: tuple[str, int] | None = scope.get("client")
    facts: dict[str, Any] = {
        "request_id": scope["state"]["request_id"],
        "client": None if client is None else f"{client[0]}:{client[1]}",
        "method": scope["method"],
        "path": quote(scope["path"]),
        "status": status,
        "seconds": round(seconds, 6),
        "key": key_name(scope["state"]),
        "model": counted.model,
        "trace_id": counted.trace_id,
    }
    if (usage := counted.usage) is not None and tally.ran(status):
        facts |= {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish": counted.finishes,
        }
    return {name: value for name, value in facts.items() if value is not None}


def _line(scope: Scope, facts: dict[str, Any]) -> str:
    known = {each.value: each.phrase for each in HTTPStatus}
    status = f"{facts['status']} {known.get(facts['status'], '')}".rstrip()
    line = (
        f'{facts.get("client", "")} "{facts["method"]} {facts["path"]} HTTP/{scope["http_version"]}" {status} '
        f"{facts['seconds']:.3f} s {facts['request_id']}"
    )
    more: list[str] = []
    if "key" in facts:
        more.append(f"key {facts['key']}")
    if "prompt_tokens" in facts:
        more.append(f"{facts['prompt_tokens']} + {facts['completion_tokens']} tokens")
    return line + (f" {', '.join(more)}" if more else "")
