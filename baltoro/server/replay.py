"""Ask again what a journal says was asked, of a server or of a model loaded here.

A chat whose body is known is sent as it came, whole instead of streamed, with the seed that it had. Otherwise token ids
go to /v1/completions, for as many tokens as there were: there no grammar keeps answers from markers and calls that are
wrong, as it does in chats, so a weak model's answers may differ. A model that is loaded here keeps a journal of its
own, so that its chats are compared token by token too, and other dialects' as they came; of a server that much is known
only where it answers with token ids.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx2

from baltoro.errors import BaltoroError
from baltoro.server import web_search
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
        answers: list[Said] = []
        prompts: list[list[int]] = []
        began_s = time.monotonic()
        for path, body in questions(record, self._model, here=self._kept is not None):
            try:
                response = await self._client.post(path, json=body, headers={"x-request-id": record["id"]})
            except httpx2.HTTPError as error:
                raise BaltoroError(f"{self._client.base_url}{path}: {error}", hint="is the server there?") from error
            if response.status_code != 200:
                error = f"{response.status_code}: {response.text[:200]}"
                return _failed(record, time.monotonic() - began_s, error)
            if self._kept is None:
                answers += answers_of(path, response.json())
                continue
            for prompt in self._kept.pop(record["id"])["prompts"]:
                answers += map(said, prompt["answers"])
                prompts.append(prompt["prompt_ids"])
        seconds = time.monotonic() - began_s
        declared = schemas(record["body"]) if "body" in record else None
        known = None if self._kept is None else prompts
        return compare(record, answers, seconds=seconds, prompts=known, schemas=declared)


def questions(record: Record, model: str, *, here: bool) -> list[tuple[str, Record]]:
    """Paths and bodies that ask for a record's answers once more. here: of a model whose records we get ourselves."""
    path: str = record["path"]
    by_body = path == CHAT or (here and path != COMPLETIONS)
    if by_body and "body" in record and not _searches(record["body"]):
        body = {name: value for name, value in record["body"].items() if name not in ("stream", "stream_options")}
        seed = record["prompts"][0]["answers"][0]["seed"]
        if path == CHAT and seed is not None:
            body["seed"] = seed
        return [(path, body | {"model": model})]
    return [(COMPLETIONS, _by_ids(prompt, model)) for prompt in record["prompts"]]


def _searches(body: Record) -> bool:
    """What was found on the web stands in the prompt's ids alone, and would be something else now."""
    return any(tool.get("type") == "builtin_function" for tool in body.get("tools") or ()) or any(
        call["function"]["name"] == web_search.NAME
        for message in body.get("messages") or ()
        for call in message.get("tool_calls") or ()
    )


def _by_ids(prompt: Record, model: str) -> Record:
    """Every prompt alone: each had a seed of its own."""
    answers = prompt["answers"]
    longest = max(1, *(len(answer["token_ids"]) for answer in answers))
    body: Record = {"model": model, "prompt": prompt["prompt_ids"], "n": len(answers), "max_tokens": longest}
    body |= {name: value for name, value in prompt["sampling"].items() if name not in _NOT_SENT}
    body["return_token_ids"] = True
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], longest)
    return body if answers[0]["seed"] is None else body | {"seed": answers[0]["seed"]}


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
            ids = choice.get("token_ids")  # where they are told the text says no more, and has markers left out
            text = choice["text"] if ids is None else None
            found.append(Said(token_ids=ids, text=text, calls=None, finish=choice["finish_reason"]))
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
