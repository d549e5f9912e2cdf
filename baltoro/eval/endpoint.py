"""One endpoint that speaks OpenAI's API, asked many things at once: retries, a budget, a ledger of what was paid.

What it answered is final when it is 200; then it is in the ledger, and asking the same again costs nothing. What was
refused (4xx) is asked anew by the next run, since it cost nothing and somebody may have repaired it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import httpx2

from baltoro.errors import AccessError, BaltoroError
from baltoro.eval.budget import Budget
from baltoro.eval.document import at
from baltoro.eval.ledger import Ledger, key

if TYPE_CHECKING:
    from baltoro.llm import ChatModel

Json = Any
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """status 200: `body` is the document, or all events of a stream; else `error` says why there is none."""

    status: int  # of HTTP; 0: nobody answered
    body: Json
    error: str
    seconds: float

    @property
    def events(self) -> list[Json]:
        assert isinstance(self.body, list), "it was asked without stream"
        return cast("list[Json]", self.body)

    @property
    def usage(self) -> Json:
        """None where nobody told."""
        documents = self.events[::-1] if isinstance(self.body, list) else [self.body]
        return next((found for each in documents if (found := at(each, "usage"))), None)


class Endpoint:
    """Everything on one event loop."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        model: str,
        *,
        ledger: Ledger,
        budget: Budget | None = None,
        extra: Mapping[str, Json] | None = None,
        concurrency: int = 5,
        retries: int = 5,
        earlier: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """extra: fields that every body gets. earlier: count what the ledger has as spent; once is enough of two."""
        self.model = model
        self.budget = budget or Budget()
        self.extra = dict(extra or {})
        self.paid = 0  # answers of this run; the others came from the ledger
        self.unanswered = 0  # requests that no retry helped: the next run asks them again
        self._client = client
        self._ledger = ledger
        self._free = asyncio.Semaphore(concurrency)
        self._retries = retries
        self._sleep = sleep
        self._under_way: dict[str, asyncio.Future[Reply]] = {}  # asked twice at once is asked once
        for record in ledger.values() if earlier else ():
            self.budget.add(_told(record["body"]).usage)

    async def ask(self, body: Mapping[str, Json], *, path: str = CHAT, salt: Json = None) -> Reply:
        """`body` without its model. salt: tells apart requests that are the same and shall both be asked."""
        whole = {"model": self.model, **body, **self.extra}
        name = key(path, whole, salt)
        if (known := self._ledger.get(name)) is not None:
            return Reply(200, known["body"], "", known["seconds"])
        asked = self._under_way.get(name)
        if asked is None:
            asked = self._under_way[name] = asyncio.ensure_future(self._pay(name, path, whole))
        return await asyncio.shield(asked)

    async def _pay(self, name: str, path: str, whole: Mapping[str, Json]) -> Reply:
        try:
            async with self._free:
                reply = await self._patiently(path, whole)
            if reply.status == 200:
                self._ledger.put(name, {"body": reply.body, "seconds": round(reply.seconds, 3)})
                self.paid += 1
            return reply
        finally:
            del self._under_way[name]

    async def get(self, path: str, body: Json = None) -> tuple[int, Json]:
        """Something that costs nothing; posted where there is a body."""
        try:
            response = await (self._client.get(path) if body is None else self._client.post(path, json=body))
            return response.status_code, response.json()
        except (httpx2.HTTPError, ValueError):
            return 0, None

    async def _patiently(self, path: str, body: Mapping[str, Json]) -> Reply:
        bound = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        bound = bound * (body.get("n") or 1) if isinstance(bound, int) else 0
        self.budget.reserve(bound)
        try:
            attempt = 0
            while True:
                reply, wait_s = await self._once(path, body)
                if wait_s is None or attempt == self._retries:
                    break
                backoff = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(1, 1.25)
                await self._sleep(max(wait_s, backoff))
                attempt += 1
        finally:
            self.budget.release(bound)
        if reply.status == 200:
            self.budget.add(reply.usage)
        elif wait_s is not None:
            self.unanswered += 1
        return reply

    async def _once(self, path: str, body: Mapping[str, Json]) -> tuple[Reply, float | None]:
        """The reply, and for how many seconds it is no use to ask again; None: never."""
        began = time.monotonic()
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")[:500]
                    return self._refused(response, text, time.monotonic() - began)
                document = await _events(response) if body.get("stream") else json.loads(await response.aread())
        except (httpx2.HTTPError, ValueError) as error:  # ValueError: what came is no JSON
            told = f"{type(error).__name__}: {error}"
            return Reply(0, None, told, time.monotonic() - began), 0.0
        if at(document, "choices") is None and not isinstance(document, list):  # some say 200 and mean an error
            return Reply(0, None, str(document)[:500], time.monotonic() - began), 0.0
        return Reply(200, document, "", time.monotonic() - began), None

    def _refused(self, response: httpx2.Response, text: str, seconds: float) -> tuple[Reply, float | None]:
        status = response.status_code
        if status in (401, 403):
            raise AccessError(f"{response.url}: {status} {text}", hint="the key is in BALTORO_API_KEY")
        reply = Reply(status, None, f"{status}: {text}", seconds)
        if status not in _TRY_AGAIN or "insufficient_quota" in text:
            return reply, None
        try:
            return reply, max(0.0, float(response.headers.get("retry-after", "0")))
        except ValueError:  # a date
            return reply, 0.0


async def _events(response: httpx2.Response) -> list[Json]:
    """ValueError: the stream broke off."""
    found: list[Json] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return found
            found.append(event := json.loads(data))
            if "error" in event:
                raise ValueError(str(event["error"])[:500])
    raise ValueError("the stream ended without [DONE]")


def _told(body: Json) -> Reply:
    return Reply(200, body, "", 0.0)


@asynccontextmanager
async def connected(
    url: str, *, key: str | None, model: str | None, timeout_s: float
) -> AsyncGenerator[tuple[httpx2.AsyncClient, str]]:
    """A client for what is behind `url`, and the name of the model. model: None takes the first that it lists."""
    if not url.startswith(("http://", "https://")):
        raise BaltoroError(f"{url} is no address", hint="expected as http://127.0.0.1:8000")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = url.rstrip("/").removesuffix("/v1")
    limits = httpx2.Limits(max_connections=None, keepalive_expiry=5.0)
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=timeout_s, limits=limits) as client:
        if model is None:
            try:
                listed = (await client.get("/v1/models")).raise_for_status().json()
                model = cast("str", listed["data"][0]["id"])
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
                raise BaltoroError(f"{url} lists no models: {error}", hint="--model NAME, BALTORO_API_KEY") from error
        yield client, model


@asynccontextmanager
async def loaded(llm: ChatModel) -> AsyncGenerator[tuple[httpx2.AsyncClient, str]]:
    """The same for a model of this process, through the routes of `baltoro serve`."""
    from baltoro.server.app import Served, create_app

    app = create_app(Served(llm=llm, names=(llm.name,)))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://model", timeout=None) as client:
        yield client, llm.name
