"""ASGI: nobody comes in without a key, and what comes in is counted until it has left.

What a request used is taken from its answers themselves (`answer.Progress`), never from the bytes that went out; so it
is the same whether the client has read all of it or left in the middle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baltoro.answer import Admit, Progress
from baltoro.errors import AccessError, AccountsError, BaltoroError, EngineError
from baltoro.server import keys, limit_headers
from baltoro.server.accounts import Visit
from baltoro.server.envelopes import speaks_anthropic

if TYPE_CHECKING:
    from baltoro.server.books import Accounts  # a database's library comes with it

_log = logging.getLogger(__name__)

OPEN = frozenset({"/", "/plan", "/health", "/ready"})  # the pages, and for whoever starts, stops and balances servers
OPEN_FOLDER = "/web/"  # of the pages, which then ask for a key themselves

Refuse = Callable[[Request, BaltoroError], Response]  # an error in the words of the dialect that was spoken


class Observer(Protocol):
    """A visit, a recorder where there is a journal, a tally where there are logs or traces."""

    def admit(self, answers: Sequence[Progress]) -> None: ...


def admission(request: Request, model: str) -> Admit | None:
    """What a route gives to the model with a prompt, so that its key is charged and journal, log and trace hear of it.

    model: the name by which it was asked for
    """
    found: list[Observer] = [
        getattr(request.state, each) for each in ("visit", "recorder", "tally") if hasattr(request.state, each)
    ]
    if hasattr(request.state, "tally"):
        request.state.tally.model = model

    def admit(answers: Sequence[Progress]) -> None:
        for each in found:
            each.admit(answers)

    return admit if found else None


def key_name(state: Mapping[str, Any]) -> str | None:
    """Whose key a request came with. state: of its scope"""
    visit: Visit | None = state.get("visit")
    return None if visit is None else visit.name


class Gate:
    def __init__(self, app: ASGIApp, accounts: Accounts, refuse: Refuse) -> None:
        self._app = app
        self._accounts = accounts
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDER):
            return await self._app(scope, receive, send)
        say = limit_headers.anthropic if speaks_anthropic(Request(scope)) else limit_headers.openai
        told: limit_headers.Headers = []
        try:
            account = await self._accounts.account(keys.presented(dict(scope["headers"])))
            told = say(account.standing)
            visit = account.enter() if scope["method"] == "POST" else None  # all else is free: lists, counters
        except AccountsError as error:
            _log.error("a key cannot be checked: %s", error.message)  # which names the database: not for clients
            response = self._refuse(Request(scope), EngineError("API keys cannot be checked at the moment"))
            return await response(scope, receive, send)
        except AccessError as error:
            response = self._refuse(Request(scope), error)
            response.raw_headers.extend(told)
            return await response(scope, receive, send)
        if visit is None:
            return await self._app(scope, receive, send)
        scope.setdefault("state", {})["visit"] = visit
        status = 499  # unless an answer begins: the client left before
        left = False

        def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            # What was refused, or failed by our fault before it began, costs nothing.
            usage, cost = visit.leave(charged=status < 400 or status == 499)
            if usage.prompt_tokens:
                self._accounts.spend(account, usage, cost)

        async def send_with_limits(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *say(account.standing)]
            elif not message.get("more_body"):
                leave()  # everything is computed; who hears the end may ask again at once, and finds the place free
            await send(message)

        try:
            return await self._app(scope, receive, send_with_limits)
        finally:
            leave()
