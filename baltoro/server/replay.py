"""Ask again what a journal says was asked, of a server or of a model loaded here.

With its body a request is sent as it came, whole instead of streamed, with the seed that it had. Without, its token ids
go to /v1/completions: no grammar there, so calls may differ that a grammar held. As many tokens are asked for as there
were. A model that is loaded here keeps a journal of its own, so that every dialect's answers are compared token by
token; of a server that much is known only where it answers with token ids.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx2

from baltoro.errors import BaltoroError
from baltoro.server.compare import Difference, Said, compare, said, schemas
from baltoro.server.journal import Record

if TYPE_CHECKING:
    from baltoro.llm import LLM

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TIMEOUT_S = 600.0
_NOT_SENT = {"max_tokens", "priority", "logprobs", "seed"}  # of a record's sampling, by ids


class Replay:
    """Asks one target, request by request, so that times are comparable."""

    def __init__(self, client: httpx2.AsyncClient, model: str, kept: dict[str, Record] | None) -> None:
        """kept: where the target's own records come, by id; None: it is a server that keeps them to itself"""
        self._client = client
        self._model = model
        self._kept = kept

    async def ask(self, record: Record) -> Difference:
        path, body = question(record, self._model, here=self._kept is not None)
        began_s = time.monotonic()
        try:
            response = await self._client.post(path, json=body, headers={"x-request-id": record["id"]})
        except httpx2.HTTPError as error:
            raise BaltoroError(f"{self._client.base_url}{path}: {error}", hint="is the server there?") from error
        seconds = time.monotonic() - began_s
        if response.status_code != 200:
            return _failed(record, seconds, f"{response.status_code}: {response.text[:200]}")
        declared = schemas(record["body"]) if "body" in record else None
        if self._kept is not None:
            again = self._kept.pop(record["id"])
            answers = [said(answer) for prompt in again["prompts"] for answer in prompt["answers"]]
            prompts = [prompt["prompt_ids"] for prompt in again["prompts"]]
            return compare(record, answers, seconds=seconds, prompts=prompts, schemas=declared)
        return compare(record, answers_of(path, response.json()), seconds=seconds, schemas=declared)


def question(record: Record, model: str, *, here: bool) -> tuple[str, Record]:
    """The path and the body that ask for a record's answer once more. here: of our own server, which knows all."""
    path: str = record["path"]
    seed = record["prompts"][0]["answers"][0]["seed"]
    if "body" in record and (here or path in (CHAT, COMPLETIONS)):
        body = {name: value for name, value in record["body"].items() if name not in ("stream", "stream_options")}
        body["model"] = model
        if path in (CHAT, COMPLETIONS) and seed is not None:
            body["seed"] = seed
        if path == COMPLETIONS:
            body["return_token_ids"] = True
        return path, body
    prompts = record["prompts"]
    longest = max(len(answer["token_ids"]) for prompt in prompts for answer in prompt["answers"])
    sampling = {name: value for name, value in prompts[0]["sampling"].items() if name not in _NOT_SENT}
    body = {
        "model": model,
        "prompt": [prompt["prompt_ids"] for prompt in prompts],
        "max_tokens": max(1, longest),
        "n": len(prompts[0]["answers"]),
        "return_token_ids": True,
        **sampling,
    }
    if "min_tokens" in sampling:
        body["min_tokens"] = min(sampling["min_tokens"], longest)
    return COMPLETIONS, body if seed is None else body | {"seed": seed}


def answers_of(path: str, document: Any) -> list[Said]:
    """The choices of a server's answer."""
    found: list[Said] = []
    for choice in document["choices"]:
        if path == CHAT:
            message = choice["message"]
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            told = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
            text, ids = message.get("content"), choice.get("token_ids")
            found.append(Said(token_ids=ids, text=text, calls=told, finish=choice["finish_reason"]))
        else:
            ids = choice.get("token_ids")
            found.append(Said(token_ids=ids, text=choice["text"], calls=None, finish=choice["finish_reason"]))
    return found


def _failed(record: Record, seconds: float, error: str) -> Difference:
    return Difference(
        id=record["id"], same_prompt=None, same_tokens=None, first_difference=None, same_text=None, same_calls=None,
        valid_calls=None, num_calls=None, seconds=(record["seconds"], seconds), error=error,
    )  # fmt: skip


@asynccontextmanager
async def server(url: str, key: str | None, model: str | None) -> AsyncGenerator[Replay]:
    """A target behind a URL. model: its name there; None: the first one that it lists."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = url.rstrip("/").removesuffix("/v1")
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=TIMEOUT_S) as client:
        if model is None:
            try:
                listed = (await client.get("/v1/models")).raise_for_status().json()
                model = cast(str, listed["data"][0]["id"])
            except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
                raise BaltoroError(f"{url} lists no models: {error}", hint="--model NAME, BALTORO_API_KEY") from error
        yield Replay(client, model, None)


@asynccontextmanager
async def loaded(llm: LLM) -> AsyncGenerator[Replay]:
    """A model that runs in this process, asked through the same routes as by `baltoro serve`."""
    from baltoro.server.app import Served, create_app
    from baltoro.server.recording import Origin, Recording

    kept: dict[str, Record] = {}

    def keep(make: Callable[[], Record]) -> None:
        record = make()
        kept[record["id"]] = record

    origin = Origin(model=llm.name, weights=None, template=None)
    served = Served(llm=llm, names=(llm.name,))
    app = create_app(served, record=lambda app: Recording(app, keep, origin, content=True))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://model", timeout=TIMEOUT_S) as client:
        yield Replay(client, llm.name, kept)


async def run(
    target: Replay, records: Iterable[Record], tell: Callable[[Difference], None] = lambda _: None
) -> Sequence[Difference]:
    """Every record that was answered, one after the other."""
    found: list[Difference] = []
    for record in records:
        if record["status"] == 200:
            found.append(await target.ask(record))
            tell(found[-1])
    return found
