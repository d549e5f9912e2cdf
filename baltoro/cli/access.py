"""Who may ask a server: what the options of `serve` say about keys and prices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from baltoro.cli.operations import Say
from baltoro.errors import BaltoroError

if TYPE_CHECKING:
    from baltoro.server.books import Accounts
    from baltoro.server.prices import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The options as they were given; contradictions are refused where it is made."""

    keys: bool
    database: str | None
    prices: Path | None
    price_input: str | None
    price_cached_input: str | None
    price_output: str | None
    insecure_no_keys: bool

    def __post_init__(self) -> None:
        given = [f"--{name}" for name, value in self._prices().items() if value is not None]
        if given and not self.keys:
            raise typer.BadParameter("is written to the accounts of keys: it goes with --keys", param_hint=given[0])
        if self.prices is not None and len(given) > 1:
            raise typer.BadParameter("the price is in --prices FILE already", param_hint=given[1])
        if self.prices is None and given and (self.price_input is None or self.price_output is None):
            raise typer.BadParameter("input and output both have a price", param_hint="--price-input, --price-output")
        if self.keys and self.insecure_no_keys:
            raise typer.BadParameter("keys, or no keys?", param_hint="--insecure-no-keys")
        if self.keys and _secret() is not None:
            raise BaltoroError(
                "there are keys in a database (--keys) and one in the environment (BALTORO_API_KEY)",
                hint="leave one of them out; `env -u BALTORO_API_KEY baltoro serve --keys ...`",
            )

    def check(self, loopback: bool) -> None:
        """loopback: only programs of this machine reach the server."""
        if not loopback and not self.keys and _secret() is None and not self.insecure_no_keys:
            raise BaltoroError(
                "this server would answer whoever reaches it from other machines",
                hint="set BALTORO_API_KEY to a secret of yours, or make keys (`baltoro keys create NAME`) and serve "
                "with --keys; --insecure-no-keys where everybody may",
            )

    def accounts(self, names: tuple[str, ...], say: Say) -> Accounts | None:
        """names: of the model that is served. None: everybody may ask."""
        secret = _secret()
        if not self.keys and secret is None:
            return None
        from baltoro.server.books import Books, OneKey

        if secret is not None:
            return OneKey(secret)
        from baltoro.server.store import Store

        prices = self._price_list(names, say)
        store = Store(self.database)
        say(f"keys are in {store.place}")
        if not any(key.revoked_s is None for key in store.all_keys()):
            say("there is no key yet: `baltoro keys create NAME`")
        return Books(store, names, prices)

    def _prices(self) -> dict[str, Path | str | None]:
        return {
            "prices": self.prices,
            "price-input": self.price_input,
            "price-cached-input": self.price_cached_input,
            "price-output": self.price_output,
        }

    def _price_list(self, names: tuple[str, ...], say: Say) -> dict[str, Price]:
        from baltoro.server import prices

        if self.prices is not None:
            listed = prices.read(self.prices)
            if prices.find(listed, names) is None:
                say(f"{self.prices} has no price for {', '.join(names)}: nothing costs anything")
            return listed
        if self.price_input is None:
            return {}
        given = {"input": self.price_input, "output": self.price_output, "cached_input": self.price_cached_input}
        values = {name: value for name, value in given.items() if value is not None}
        return {names[0]: prices.price(names[0], values)}


def _secret() -> str | None:
    """The key of BALTORO_API_KEY; a line break at its end, from a file, is none of it."""
    secret = os.environ.get("BALTORO_API_KEY", "").strip()
    if not (secret.isascii() and secret.isprintable()):  # no header brings anything else
        raise BaltoroError("BALTORO_API_KEY has characters that no client can send", hint="use printable ASCII")
    return secret or None
