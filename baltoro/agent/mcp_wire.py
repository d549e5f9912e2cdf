"""How MCP's messages travel: lines through a program's pipes, or POSTs whose answers are JSON or events."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol, cast

import httpx2

from baltoro.chat.messages import Json
from baltoro.errors import BaltoroError

Wired = dict[str, Any]  # a JSON-RPC message
END_S = 5.0  # that a program gets to leave


class Wire(Protocol):
    def ask(self, method: str, params: dict[str, Json], seconds: float) -> Wired: ...  # the response, an error or not

    def notify(self, method: str) -> None: ...

    def agreed(self, version: str) -> None: ...  # the protocol's, from now on

    def close(self) -> None: ...


class Stdio:
    """A program that reads requests from its stdin and answers on its stdout; its stderr is ours."""

    def __init__(self, command: list[str]) -> None:
        self._told = command[0]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise BaltoroError(f"{command[0]}: {error.strerror}", hint="--mcp gives a command that runs") from error
        self._ids = itertools.count(1)
        self._writing = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Wired | None]] = {}  # None: it has ended
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="baltoro-mcp", daemon=True)
        self._thread.start()

    def ask(self, method: str, params: dict[str, Json], seconds: float) -> Wired:
        number = next(self._ids)
        answer: queue.SimpleQueue[Wired | None] = queue.SimpleQueue()
        self._waiting[number] = answer
        try:
            self._write({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            if self._ended:
                raise BaltoroError(f"{self._told} has ended", hint="its messages above may say why")
            found = answer.get(timeout=seconds)
        except queue.Empty:
            self._write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}})
            raise BaltoroError(f"{self._told} did not answer {method} within {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if found is None:
            raise BaltoroError(f"{self._told} has ended", hint="its messages above may say why")
        return found

    def notify(self, method: str) -> None:
        self._write({"jsonrpc": "2.0", "method": method})

    def agreed(self, version: str) -> None:
        """Lines do not say it again."""

    def close(self) -> None:
        """As the protocol has it: its stdin ends, then it is told to, then it is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        for end in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(END_S)
                break
            except subprocess.TimeoutExpired:
                end()
        self._process.wait()
        self._thread.join(END_S)
        self._process.stdout.close()

    def _write(self, message: Wired) -> None:
        assert self._process.stdin is not None
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            try:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except (OSError, ValueError) as error:
                raise BaltoroError(f"{self._told} has ended", hint="its messages above may say why") from error

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = _parsed(line)
            if message is None:
                continue  # a server that prints to the wrong place
            if "method" not in message:
                answer = self._waiting.get(message.get("id", 0))
                if answer is not None:
                    answer.put(message)
            elif "id" in message:
                with suppress(BaltoroError):
                    self._write(_refusal(message))
        self._ended = True
        for answer in list(self._waiting.values()):
            answer.put(None)


class Http:
    """A server at a URL, by streamable HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx2.Client(headers={"accept": "application/json, text/event-stream"}, trust_env=False)
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}  # headers that say whose messages these are

    def ask(self, method: str, params: dict[str, Json], seconds: float) -> Wired:
        number = next(self._ids)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            with self._client.stream(
                "POST", self._url, json=message, headers=self._session, timeout=seconds
            ) as response:
                if response.status_code != 200:
                    text = response.read().decode(errors="replace")
                    raise BaltoroError(f"{self._url}: {method}: {response.status_code}: {text[:300]}")
                if (session := response.headers.get("mcp-session-id")) is not None:
                    self._session["mcp-session-id"] = session
                for each in self._messages(response):
                    if each.get("id") == number and "method" not in each:
                        return each
                    if "method" in each and "id" in each:
                        self._post(_refusal(each))
        except httpx2.HTTPError as error:
            raise BaltoroError(f"{self._url}: {method}: {error!r}", hint="is the server there?") from error
        raise BaltoroError(f"{self._url}: {method}: the stream ended without an answer")

    def notify(self, method: str) -> None:
        self._post({"jsonrpc": "2.0", "method": method})

    def agreed(self, version: str) -> None:
        self._session["mcp-protocol-version"] = version

    def close(self) -> None:
        if "mcp-session-id" in self._session:
            with suppress(httpx2.HTTPError):  # a server need not know the end of a session
                self._client.delete(self._url, headers=self._session, timeout=END_S)
        self._client.close()

    def _post(self, message: Wired) -> None:
        try:
            self._client.post(self._url, json=message, headers=self._session, timeout=30.0)
        except httpx2.HTTPError as error:
            raise BaltoroError(f"{self._url}: {error!r}", hint="is the server there?") from error

    def _messages(self, response: httpx2.Response) -> Iterator[Wired]:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            message = _parsed(response.read())
            if message is None:
                raise BaltoroError(f"{self._url} answers with what is no message of MCP")
            yield message
            return
        for text in events(response.iter_lines()):
            message = _parsed(text.encode())
            if message is not None:
                yield message


def events(lines: Iterable[str]) -> Iterator[str]:
    """The data of server-sent events."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data.clear()


def _parsed(line: bytes) -> Wired | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("Wired", message) if isinstance(message, dict) else None


def _refusal(request: Wired) -> Wired:
    """What a server may ask of us: a sign of life. All else we did not offer."""
    if request["method"] == "ping":
        return {"jsonrpc": "2.0", "id": request["id"], "result": {}}
    error = {"code": -32601, "message": f"{request['method']} is not offered"}
    return {"jsonrpc": "2.0", "id": request["id"], "error": error}
