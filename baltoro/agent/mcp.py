"""Tools of an MCP server: listed once, called as our own are.

The protocol is that of 2025-11-25 and its forerunners, which begin with `initialize`. It is written out here: the
official SDK would bring an event loop and packages of its own for what are four kinds of messages. Tests run against
servers made with that. A server is a program of the user's with the user's rights: it runs in no sandbox.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, Self, cast

from baltoro.agent.mcp_wire import Http, Stdio, Wire
from baltoro.agent.tool import AgentTool, ToolResult
from baltoro.chat.messages import Json
from baltoro.errors import BaltoroError, ToolError

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
START_S = 60.0  # for a server to begin: `npx` may fetch it first
CALL_S = 300.0
MOST_TOOLS = 1024


class McpServer:
    """One server, from its greeting to its end. Its tools may be called by several threads."""

    def __init__(self, wire: Wire, told: str) -> None:
        """told: what errors call it"""
        self._wire = wire
        self._told = told
        try:
            hello = self._ask(
                "initialize",
                {
                    "protocolVersion": VERSIONS[0],
                    "capabilities": {},
                    "clientInfo": {"name": "baltoro", "version": "0.1.0"},
                },
                START_S,
            )
            if hello.get("protocolVersion") not in VERSIONS:
                raise BaltoroError(
                    f"{told} speaks MCP {hello.get('protocolVersion')!r}", hint=f"we speak {', '.join(VERSIONS)}"
                )
            self.name = str(cast("dict[str, Json]", hello.get("serverInfo") or {}).get("name") or "mcp")
            wire.agreed(hello["protocolVersion"])
            wire.notify("notifications/initialized")
            self._listed = list(self._list()) if "tools" in (hello.get("capabilities") or {}) else []
        except BaseException:
            wire.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    def tools(self) -> list[AgentTool]:
        """Named SERVER__TOOL, with what K2 cannot spell replaced."""
        found: list[AgentTool] = []
        for each in self._listed:
            name = callable_name(self.name, each["name"], {tool.name for tool in found})
            schema = each.get("inputSchema") or {"type": "object"}
            found.append(
                AgentTool(
                    name=name,
                    description=each.get("description") or "",
                    parameters=schema,
                    run=self._runner(each["name"]),
                )
            )
        return found

    def _runner(self, name: str) -> Any:
        def run(arguments: dict[str, Json]) -> ToolResult:
            try:
                return _result(self._ask("tools/call", {"name": name, "arguments": arguments}, CALL_S))
            except BaltoroError as error:
                raise ToolError(str(error)) from error

        return run

    def _list(self) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        count = 0
        while True:
            page = self._ask("tools/list", {} if cursor is None else {"cursor": cursor}, START_S)
            for each in page.get("tools") or ():
                if not isinstance(each, dict) or not isinstance(cast("dict[str, Any]", each).get("name"), str):
                    raise BaltoroError(f"{self._told} lists a tool without a name", hint="it does not hold to MCP")
                count += 1
                if count > MOST_TOOLS:
                    raise BaltoroError(
                        f"{self._told} lists more than {MOST_TOOLS} tools", hint="no model reads so many"
                    )
                yield cast("dict[str, Any]", each)
            cursor = page.get("nextCursor")
            if not cursor:
                return

    def _ask(self, method: str, params: dict[str, Json], seconds: float) -> dict[str, Any]:
        answer = self._wire.ask(method, params, seconds)
        if (error := answer.get("error")) is not None:
            problem = cast("dict[str, Json]", error) if isinstance(error, dict) else {"message": error}
            raise BaltoroError(f"{self._told}: {method}: {problem.get('message')}")
        result = answer.get("result")
        if not isinstance(result, dict):
            raise BaltoroError(f"{self._told}: {method}: the result is no object", hint="it does not hold to MCP")
        return cast("dict[str, Any]", result)


def connect(where: str) -> McpServer:
    """A command to start, or the URL of a server that speaks streamable HTTP."""
    if where.startswith(("http://", "https://")):
        return McpServer(Http(where), where)
    try:
        command = shlex.split(where)
    except ValueError as error:
        raise BaltoroError(f"--mcp {where!r}: {error}", hint="give a command, or http://...") from error
    if not command:
        raise BaltoroError("--mcp is empty", hint="give a command, or http://...")
    return McpServer(Stdio(command), command[0])


def callable_name(server: str, name: str, taken: set[str]) -> str:
    """A name that K2 can call, another for every tool; a long one keeps its beginning and a digest of all of it."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{server}__{name}")
    for attempt in range(len(taken) + 1):
        found = plain if attempt == 0 else f"{plain}_{attempt + 1}"
        if len(found) > 64:
            found = f"{found[:55]}_{hashlib.sha256(f'{server}/{name}/{attempt}'.encode()).hexdigest()[:8]}"
        if found not in taken:
            return found
    raise AssertionError("one of n + 1 names is not among n")


def _result(answer: dict[str, Any]) -> ToolResult:
    """Text as text; of pictures and sound, which the model cannot see, what they are."""
    parts = [_part(cast("dict[str, Any]", each)) for each in answer.get("content") or () if isinstance(each, dict)]
    structured = answer.get("structuredContent")
    if structured is not None and not any(parts):
        parts = [json.dumps(structured, ensure_ascii=False)]
    text = "\n".join(parts) or "[nothing]"
    failed = bool(answer.get("isError"))
    return ToolResult(for_model=f"Error: {text}" if failed else text, failed=failed)


def _part(part: dict[str, Any]) -> str:
    match part.get("type"):
        case "text":
            return str(part.get("text", ""))
        case "resource":
            held = cast("dict[str, Any]", part.get("resource") or {})
            return str(held.get("text") or f"[{held.get('mimeType', 'data')} at {held.get('uri')}, not shown]")
        case "resource_link":
            return f"[{part.get('name', 'a resource')} at {part.get('uri')}]"
        case kind:
            return f"[{kind}, {part.get('mimeType', 'of no type')}, not shown: the model reads text]"
