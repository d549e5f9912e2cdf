"""One upstream: its address, what it speaks, how it does, and one sequence read from it as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import httpx2

from baltoro.engine.request import SamplingParams
from baltoro.engine.upstream.dialect import Ask, Chunk, Dialect, Event, Failed, Malformed
from baltoro.engine.upstream.llama_server import LlamaServer
from baltoro.engine.upstream.sglang import Sglang
from baltoro.engine.upstream.vllm import Vllm

BUSY = (429, 503)
LOST = (401, 403, 408, 500, 502, 504)  # no fault of the request's
LONGEST_PLEA_S = 30.0  # of a Retry-After


class Lost(Exception):
    """The upstream did not say what was asked for: no connection, a broken one, silence, nonsense."""


class Busy(Exception):
    """The upstream takes nothing now."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Refused(Exception):
    """The upstream says that the request itself is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds. What takes longer has failed."""

    connect_s: float = 5.0
    first_token_s: float = 600.0  # a queue and a long prompt
    silence_s: float = 120.0  # between two tokens
    health_s: float = 20.0  # an answer to a question for its health, a token included
    probe_s: float = 10.0  # between two such questions, unless it speaks anyway


@dataclass(frozen=True, slots=True)
class Identity:
    """What an upstream says of itself."""

    dialect: Dialect
    max_context: int


class Upstream:
    """Belongs to the event loop that speaks with it."""

    def __init__(self, url: str, client: httpx2.AsyncClient, patience: Patience, vocab_size: int) -> None:
        self.url = url
        self.least_context = 1  # tokens; less makes it useless
        self.identity: Identity | None = None  # None until it has answered once
        self.fault: str | None = None
        self.suspect = asyncio.Event()  # set: it is to be looked at now
        self.running = self.requests = self.generated = self.failures = 0
        self._client, self._patience, self._vocab_size = client, patience, vocab_size
        self._heard_at = 0.0  # time.monotonic() of its last sign of life
        self._busy_until = 0.0

    @property
    def usable(self) -> bool:
        return self.identity is not None and self.fault is None and time.monotonic() >= self._busy_until

    def failed(self, reason: str) -> None:
        """Nothing more goes there until it has generated a token for us."""
        self.failures += 1
        self.fault = reason
        self.suspect.set()

    def busy(self, wait_s: float) -> None:
        self._busy_until = time.monotonic() + wait_s

    async def look(self) -> bool:
        """Ask how it does, unless it has just spoken. True if it has come back."""
        silent_s = time.monotonic() - self._heard_at
        was, failures = self.fault, self.failures
        if was is None and self.identity is not None and silent_s < self._patience.probe_s:
            return False
        try:
            async with asyncio.timeout(self._patience.health_s):
                if was is not None or self.identity is None:
                    # A server whose engine has died goes on answering: only a token shows that it is well again.
                    await self.prove()
                else:
                    await self._get(self.identity.dialect.health)
        except (Lost, Busy, Refused) as error:
            self.fault = str(error)
        except TimeoutError:
            self.fault = f"no answer within {self._patience.health_s:g} s"
        else:
            self._heard_at = time.monotonic()
            if self.failures == failures:  # no request has failed in the meantime
                self.fault = None
        return was is not None and self.fault is None

    async def prove(self) -> None:
        """Learn what it is and let it generate a token. Raises Lost, Busy or Refused."""
        self.identity = await self._identify()
        if self.identity.max_context < self.least_context:
            raise Refused(f"its context is {self.identity.max_context} tokens, {self.least_context} are served")
        ask = Ask(prompt=[0], sampling=SamplingParams(max_tokens=1))
        async with aclosing(self.stream(ask)) as chunks:
            async for _ in chunks:
                pass

    async def stream(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """What it says, as it comes; closing the generator closes the connection, which ends its work.

        Raises Lost, Busy or Refused, and RequestError for a wish that it cannot fulfil. The last chunk is `over`.
        """
        assert self.identity is not None
        dialect = self.identity.dialect
        dialect.check(ask.sampling)  # it may have been unknown when the request came
        read = dialect.reader()
        async with aclosing(self._events(dialect.path, dialect.body(ask))) as events:
            limit = self._patience.first_token_s
            while True:
                try:
                    async with asyncio.timeout(limit):
                        event = await anext(events)
                except StopAsyncIteration:
                    raise Lost("it closed the stream before its end") from None
                except TimeoutError:
                    raise Lost(f"no token for {limit:g} s") from None
                except httpx2.HTTPError as error:
                    raise Lost(f"{type(error).__name__}: {error}".rstrip(": ")) from error
                try:
                    chunk = read(event)
                except Failed as error:
                    raise Lost(str(error)) from error
                except Malformed as error:
                    raise Lost(f"malformed: {error}") from error
                except (KeyError, TypeError, ValueError, AttributeError) as error:  # its JSON has another shape
                    raise Lost(f"malformed: {error!r} in {str(event)[:200]}") from error
                if chunk.heard:
                    self._heard_at = time.monotonic()
                    self.generated += len(chunk.heard)
                    limit = self._patience.silence_s
                yield chunk
                if chunk.over:
                    return

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Event]:
        """The JSON objects of a stream of server-sent events, or the one of a plain answer."""
        async with self._client.stream("POST", self.url + path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                _complain(response)
            if "event-stream" not in response.headers.get("content-type", ""):
                yield _object(await response.aread())
                return
            async for line in _lines(response.aiter_bytes()):
                name, _, data = line.partition(b":")
                if name == b"data" and data.strip() != b"[DONE]":
                    yield _object(data)
                elif name == b"error":  # how older llama-servers tell one
                    raise Lost(data.decode(errors="replace").strip()[:300])

    async def _get(self, path: str) -> httpx2.Response:
        try:
            response = await self._client.get(self.url + path)
        except httpx2.HTTPError as error:
            raise Lost(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if response.status_code != 200:
            _complain(response)
        return response

    async def _identify(self) -> Identity:
        try:
            return await self._identity()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Refused(f"it does not say what it is: {error!r} in its /v1/models or /props") from error

    async def _identity(self) -> Identity:
        card: dict[str, Any] = _object((await self._get("/v1/models")).content)["data"][0]
        owner, model = card.get("owned_by"), card["id"]
        if owner == "vllm":
            return Identity(Vllm(str(model)), int(card["max_model_len"]))
        if owner == "sglang":
            return Identity(Sglang(self._vocab_size), int(card["max_model_len"]))
        if owner == "llamacpp":
            size = card["meta"]["n_vocab"]
            if size != self._vocab_size:
                raise Refused(f"its model has {size} tokens, the tokenizer here {self._vocab_size}")
            settings = _object((await self._get("/props")).content)["default_generation_settings"]
            return Identity(LlamaServer(self._vocab_size), int(settings["n_ctx"]))
        raise Refused(f"it is owned by {owner!r}, expected vllm, sglang or llamacpp")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Ended by a line feed alone: httpx's own lines end at U+2028 too, which a text in JSON may contain."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


def _complain(response: httpx2.Response) -> None:
    text = response.text
    try:
        answer: Any = response.json()
        error = answer.get("error", answer)
        text = str(error.get("message", text)) if isinstance(error, dict) else str(error)  # type: ignore[union-attr]
    except (ValueError, AttributeError):
        pass
    message = f"HTTP {response.status_code}: {text[:500]}"
    if response.status_code in BUSY:
        asked = response.headers.get("retry-after", "")
        raise Busy(message, min(float(asked), LONGEST_PLEA_S) if asked.isdigit() else 1.0)
    if response.status_code in LOST or response.status_code >= 500:
        raise Lost(message)
    raise Refused(message)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise Lost(f"malformed: {str(text)[:100]!r} is no JSON") from error
    if not isinstance(value, dict):
        raise Lost(f"malformed: {str(text)[:100]!r} is no JSON object")
    return cast("dict[str, Any]", value)
