"""ASGI: what a request asked and what it was answered, as a record for the journal.

    version, id, time      1; x-request-id; when it came, UTC
    key, path, status      the key's name or null; the route; what was answered
    model, weights, template    its name; digests of its files and of how conversations become ids
    seconds                from coming to the last byte
    prompts                a list: prompt_ids, sampling (what was not left at its default), answers:
                           token_ids, finish (null: it was given up), first_token_s, usage, text and calls (*)
    body                   what the client sent (*)

(*) with content alone. Ids are content too, for whoever has the model's tokenizer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.answer import Progress, Reader
from baltoro.chat.messages import Wishes
from baltoro.server.gate import key_name
from baltoro.server.journal import Record

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose answers these are."""

    model: str
    weights: str | None  # None: they are behind a URL
    template: str | None


class Recorder:
    """One request on its way."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.came = datetime.now(UTC)
        self.prompts: list[Sequence[Reader[Any]]] = []
        self.body = bytearray()
        self.status = 499

    def admit(self, answers: Sequence[Progress]) -> None:
        """Scripts and other models without tokens have nothing to be written down."""
        self.prompts.append([cast("Reader[Any]", each) for each in answers if isinstance(each, Reader)])


class Recording:
    def __init__(
        self, app: ASGIApp, keep: Callable[[Callable[[], Record]], None], origin: Origin, *, content: bool
    ) -> None:
        """keep: takes what makes a record; on which thread is its own matter"""
        self._app = app
        self._keep = keep
        self._origin = origin
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        recorder = Recorder()
        scope.setdefault("state", {})["recorder"] = recorder

        async def receive_and_keep() -> Message:
            message = await receive()
            if message["type"] == "http.request" and self._content:
                recorder.body += message.get("body", b"")
            return message

        async def send_and_see(message: Message) -> None:
            if message["type"] == "http.response.start":
                recorder.status = message["status"]
            await send(message)

        try:
            return await self._app(scope, receive_and_keep, send_and_see)
        finally:
            if any(recorder.prompts):  # what was refused before was no request to the model
                seconds = time.monotonic() - recorder.began_s
                self._keep(partial(self._record, recorder, dict(scope["state"]), scope["path"], seconds))

    def _record(self, recorder: Recorder, state: dict[str, Any], path: str, seconds: float) -> Record:
        record: Record = {
            "version": VERSION,
            "id": state["request_id"],
            "time": recorder.came.isoformat(timespec="milliseconds"),
            "key": key_name(state),
            "path": path,
            "status": recorder.status,
            **asdict(self._origin),
            "seconds": round(seconds, 6),
            "prompts": [self._prompt(answers, recorder.began_s) for answers in recorder.prompts if answers],
        }
        if self._content:
            record["body"] = json.loads(bytes(recorder.body))
        return record

    def _prompt(self, answers: Sequence[Reader[Any]], began_s: float) -> Record:
        told: list[Record] = []
        for each in answers:
            first_s = None if each.first_s is None else round(each.first_s - began_s, 6)
            answer: Record = {
                "token_ids": each.tokens,
                "finish": each.finish,
                "first_token_s": first_s,
                "usage": asdict(each.usage),
                "seed": each.wishes.seed,
            }
            if self._content:
                said = each.retold()
                calls = [{"name": call.name, "arguments": call.arguments} for call in said.calls]
                answer |= {"text": said.content, "calls": calls}
            told.append(answer)
        return {"prompt_ids": answers[0].prompt, "sampling": _sampling(answers[0].wishes), "answers": told}


def _sampling(wishes: Wishes) -> Record:
    """What differs from the defaults; of lists of ids and strings, lists."""
    found: Record = {}
    for each in fields(Wishes):
        if each.name == "noted":  # a part of the body, and told with it
            continue
        value: Any = getattr(wishes, each.name)
        if each.name == "temperature" or value != getattr(_DEFAULT, each.name):
            found[each.name] = sorted(cast("frozenset[int]", value)) if isinstance(value, frozenset) else value
    return found


_DEFAULT = Wishes()
