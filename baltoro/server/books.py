"""Who is behind a key that comes in, and where it is written what they used.

`Books` reads keys from the database and writes usage there, on one thread in the order in which both were asked for:
so what was read is exactly what had been written. `OneKey` is the simple case, a secret from the environment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from baltoro.chat.messages import Usage
from baltoro.errors import AccessError, AccountsError
from baltoro.server import keys
from baltoro.server.accounts import Account, Clock
from baltoro.server.keys import Key, Spent
from baltoro.server.prices import Price, find
from baltoro.server.store import Spending, Store, spending, today

_log = logging.getLogger(__name__)

FRESH_S = 5.0  # after which a key, its limits and what it used elsewhere are read again
_NOBODY = keys.digest("")


class Accounts(Protocol):
    """Belongs to the event loop."""

    async def account(self, secret: str | None) -> Account: ...  # AccessError: nobody we know

    def spend(self, account: Account, usage: Usage, cost: int) -> None: ...  # returns at once

    def close(self) -> None: ...  # everything is written then


class OneKey:
    """A single key without limits. What it uses is written nowhere."""

    def __init__(self, secret: str) -> None:
        self._account = Account(Key(id="", name="BALTORO_API_KEY", digest=keys.digest(secret), created_s=0))

    async def account(self, secret: str | None) -> Account:
        if not keys.same(secret or "", self._account.key.digest):
            raise _unknown(secret)
        return self._account

    def spend(self, account: Account, usage: Usage, cost: int) -> None:
        pass

    def close(self) -> None:
        pass


class Books:
    """The keys of a database at work."""

    def __init__(
        self, store: Store, names: tuple[str, ...], prices: Mapping[str, Price], clock: Clock = time.monotonic
    ) -> None:
        """names: of the model that is served, its own first; usage is written under that one. Closes `store`."""
        self._store = store
        self._names = names
        self._price = find(prices, names)
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._read_s: dict[str, float] = {}  # when each account was
        self._thread = ThreadPoolExecutor(1, "baltoro-books")
        # What follows belongs to that thread.
        self._written: dict[str, tuple[int, int]] = {}  # tokens and cost by key, since the start
        self._unwritten: list[Spending] = []

    async def account(self, secret: str | None) -> Account:
        key_id = keys.id_of(secret or "")
        if key_id is None:
            raise _unknown(secret)
        if self._clock() - self._read_s.get(key_id, float("-inf")) > FRESH_S:
            await self._refresh(key_id)
        account = self._accounts.get(key_id)
        if not keys.same(secret or "", account.key.digest if account else _NOBODY) or account is None:
            raise _unknown(secret)
        account.check()
        return account

    async def _refresh(self, key_id: str) -> None:
        loop, asked_s = asyncio.get_running_loop(), self._clock()
        found = await loop.run_in_executor(self._thread, self._read, key_id)
        if found is None:
            self._accounts.pop(key_id, None)
            return
        key, spent, told = found
        if key_id not in self._accounts:
            self._accounts[key_id] = Account(key, names=self._names, price=self._price, clock=self._clock)
        self._accounts[key_id].refresh(key, spent, told)
        self._read_s[key_id] = asked_s

    def spend(self, account: Account, usage: Usage, cost: int) -> None:
        self._thread.submit(self._write, spending(account.key.id, self._names[0], usage, cost))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        if self._unwritten:
            self._try()
        if self._unwritten:
            _log.error("the usage of %d requests is lost: %s", len(self._unwritten), self._unwritten)
        self._store.close()

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _read(self, key_id: str) -> tuple[Key, Spent, tuple[int, int]] | None:
        key = self._store.find(key_id)
        if key is None:
            return None
        return key, self._store.spent(key_id, today()[:7]), self._written.get(key_id, (0, 0))

    def _write(self, used: Spending) -> None:
        self._unwritten.append(used)
        self._try()

    def _try(self) -> None:
        """Write what is not written; what fails is tried again with the next request's."""
        try:
            self._store.spend(self._unwritten)
        except AccountsError as error:
            _log.error("usage of %d requests is not written yet: %s", len(self._unwritten), error.message)
            return
        for each in self._unwritten:
            tokens, cost = self._written.get(each.key_id, (0, 0))
            more = each.prompt_tokens + each.completion_tokens
            self._written[each.key_id] = (tokens + more, cost + each.cost)
        self._unwritten.clear()


def _unknown(secret: str | None) -> AccessError:
    return AccessError(
        "the API key is unknown here" if secret else "this server needs an API key",
        hint="send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
    )
