"""Moonshot's builtin function `$web_search`: the model asks, the client sends the question back, this server searches.

    tools      {"type": "builtin_function", "function": {"name": "$web_search"}}
    assistant  calls $web_search with {"query": ...}
    tool       the same arguments, which is the client's word for "search"    -> here: what was found

How it is searched is the operator's: a function that gets the arguments and nothing else. A result that says anything
but the call's own arguments is the client's own, and stays.
Source: platform.moonshot.ai/docs/guide/use-web-search. Its clients parse the arguments and write them anew, so they are
compared as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import BoundedSemaphore, Thread
from typing import Any, cast

from baltoro.chat.call_ids import canonicalize
from baltoro.chat.messages import ChatRequest, Json, Message, Tool
from baltoro.chat.template import as_dict, content_text

NAME = "$web_search"
TIMEOUT_S = 30.0  # of one search
FRESH_S = 300.0  # a new question gets what the same one found, by the same id, for so long
MOST_NEW = 16  # searches for one request, whatever its history says
MOST_THREADS = 64  # searches at once; a function that never returns keeps its thread
KEPT_CHARACTERS = 2**24  # of results and the calls they belong to
ENTRY_CHARACTERS = 256  # what keeping costs beside, so that a million empty results are bounded too

# The model reads of it as of any function: K2 was trained on no other form. Nothing but a query, so that a search
# function knows what it gets.
_PARAMETERS: dict[str, Json] = {
    "type": "object",
    "required": ["query"],
    "properties": {"query": {"description": "What to search for", "type": "string"}},
    "additionalProperties": False,
}
_FUNCTION: dict[str, Json] = {
    "name": NAME,
    "description": "Search the web. Returns what was found.",
    "parameters": _PARAMETERS,
}
TOOL = Tool(name=NAME, parameters=_PARAMETERS, declaration={"type": "function", "function": _FUNCTION})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A result that is to be searched for."""

    place: int  # in messages
    key: tuple[str, str]  # the call's id as the client has it, its arguments
    is_new: bool  # nothing but results stands behind it


@dataclass(frozen=True, slots=True)
class _Found:
    text: str
    at_s: float
    failed: bool = False


class WebSearch:
    """Puts results in the place of questions. Belongs to one event loop."""

    def __init__(
        self,
        function: Callable[[dict[str, Json]], Any],
        *,
        timeout_s: float = TIMEOUT_S,
        kept_characters: int = KEPT_CHARACTERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """function: arguments, a dict with a string `query`, -> text, or what JSON can say; on a thread, or async"""
        self._function = function
        self._timeout_s = timeout_s
        self._clock = clock
        self._threads = BoundedSemaphore(MOST_THREADS)
        self._kept: OrderedDict[tuple[str, str], _Found] = OrderedDict()  # used last stands last
        self._room = kept_characters

    async def answered(self, request: ChatRequest) -> ChatRequest:
        """The same with what was found. Later turns find the same again, and nothing is searched for them."""
        asked = _questions(request.messages)
        texts = {each.place: kept.text for each in asked if (kept := self._known(each)) is not None}
        new = [each for each in asked if each.place not in texts]
        texts |= {each.place: f"Error: not searched, as a request may ask for {MOST_NEW} results" for each in new}
        newest = new[-MOST_NEW:]
        found = await asyncio.gather(*(self._found(each) for each in newest))
        texts |= {each.place: text for each, text in zip(newest, found, strict=True)}
        messages = [
            replace(message, content=texts[place]) if place in texts else message
            for place, message in enumerate(request.messages)
        ]
        return replace(request, messages=tuple(messages))

    def _known(self, asked: _Asked) -> _Found | None:
        """An old question keeps its result, a failure too: what the model has read is not changed behind its back."""
        found = self._kept.get(asked.key)
        if found is None or (asked.is_new and (found.failed or self._clock() - found.at_s >= FRESH_S)):
            return None
        self._kept.move_to_end(asked.key)
        return found

    async def _found(self, asked: _Asked) -> str:
        match _value(asked.key[1]):
            case {"query": str()} as arguments:
                found = await self._search(cast("dict[str, Json]", arguments))
                self._keep(asked.key, found)
                return found.text
            case _:
                return f'Error: not searched, as {NAME} takes {{"query": TEXT}}'

    async def _search(self, arguments: dict[str, Json]) -> _Found:
        began_s = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.wrap_future(self._on_thread(arguments))
                if inspect.isawaitable(found):
                    found = await found
            text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, allow_nan=False)
            text.encode()  # halves of characters are no text
        except Exception as error:  # the function is not ours, and what it says may quote the query or a key
            kind = type(error).__name__
            _log.warning("%s failed after %.1f s: %s%s", NAME, self._clock() - began_s, kind, _where(error))
            return _Found(f"Error: the search failed ({kind})", self._clock(), failed=True)
        return _Found(text, self._clock())

    def _on_thread(self, arguments: dict[str, Json]) -> Future[Any]:
        """A thread of its own: pools wait at the end of the process for what never returns, and others need theirs."""
        if not self._threads.acquire(blocking=False):
            raise TooManySearches
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # whoever waits may leave, the search goes on

        def work() -> None:
            try:
                future.set_result(self._function(arguments))
            except BaseException as error:  # the outermost loop of this thread
                is_plain = isinstance(error, Exception)  # who calls sys.exit ends a search, not the server
                future.set_exception(error if is_plain else RuntimeError(type(error).__name__))
            finally:
                self._threads.release()

        Thread(target=work, name="baltoro-web-search", daemon=True).start()
        return future

    def _keep(self, key: tuple[str, str], found: _Found) -> None:
        self._forget(key)
        self._kept[key] = found
        self._room -= _characters(key, found)
        while self._room < 0:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: tuple[str, str]) -> None:
        found = self._kept.pop(key, None)
        self._room += 0 if found is None else _characters(key, found)


class TooManySearches(Exception):
    """As many as may be are under way."""


def _characters(key: tuple[str, str], found: _Found) -> int:
    return len(key[0]) + len(key[1]) + len(found.text) + ENTRY_CHARACTERS


def _questions(messages: Sequence[Message]) -> list[_Asked]:
    """Results that are the arguments of the `$web_search` call which they answer."""
    if not any(call.name == NAME for message in messages for call in message.tool_calls):
        return []
    renamed, _ = canonicalize(messages)  # so that each result names one call
    calls = {call.id: call for message in renamed for call in message.tool_calls if call.name == NAME}
    last = max((place for place, message in enumerate(messages) if message.role != "tool"), default=-1)
    asked: list[_Asked] = []
    for place, message in enumerate(messages):
        call = calls.get(renamed[place].tool_call_id or "") if message.role == "tool" else None
        if call is None:
            continue
        arguments = _canonical(call.arguments)
        if _canonical(content_text(message.content)) == arguments:
            asked.append(_Asked(place, (message.tool_call_id or "", arguments), is_new=place > last))
    return asked


def _canonical(arguments: str | Mapping[str, Json]) -> str:
    """One text for what is the same JSON; text that is none is itself."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=as_dict)
    except (ValueError, RecursionError):
        return str(arguments)


def _value(text: str) -> Json:
    """What it says as JSON; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def call_type(name: str) -> str:
    """What Moonshot's API calls a call's type; some of its clients tell by this alone what to send back."""
    return "builtin_function" if name == NAME else "function"


def _where(error: BaseException) -> str:
    """File and line, which hold nothing that was said."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
