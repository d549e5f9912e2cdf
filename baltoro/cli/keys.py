"""Commands about keys and what they used."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baltoro.cli.app import app
from baltoro.cli.options import Database
from baltoro.errors import AccountsError

if TYPE_CHECKING:
    from baltoro.server.keys import Key, Limits
    from baltoro.server.store import Line, Store

keys = typer.Typer(
    help="Keys of `baltoro serve --keys`: who may ask, and how much.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(keys, name="keys")


def _limit(what: str, metavar: str = "N") -> Any:
    return typer.Option(metavar=metavar, help=what)


Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; told in reports and refusals.")]
Requests = Annotated[str | None, _limit("Requests in any minute.")]
Tokens = Annotated[str | None, _limit("Tokens of prompts and answers in any minute.")]
Concurrent = Annotated[str | None, _limit("Requests under way.")]
TokenBudget = Annotated[str | None, _limit("Tokens in all.")]
TokenBudgetMonth = Annotated[str | None, _limit("Tokens in a calendar month (UTC).")]
MoneyBudget = Annotated[str | None, _limit("Money in all, in the currency of the server's prices.", "MONEY")]
MoneyBudgetMonth = Annotated[str | None, _limit("Money in a calendar month (UTC).", "MONEY")]
Models = Annotated[list[str] | None, typer.Option("--model", help="That it may ask; repeatable. [default: all]")]
Expires = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="A duration as 12h or 90d, or a day (UTC) at whose beginning it ends."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for scripts.")]


class By(StrEnum):
    key = "key"
    day = "day"
    model = "model"


@keys.command("create")
def create(
    name: Name,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent: Concurrent = None,
    token_budget: TokenBudget = None,
    token_budget_month: TokenBudgetMonth = None,
    money_budget: MoneyBudget = None,
    money_budget_month: MoneyBudgetMonth = None,
    model: Models = None,
    expires: Expires = None,
    database: Database = None,
) -> None:
    """Make a key and print it. This is the only time that it is shown: only its hash is kept."""
    from baltoro.server import keys as forms
    from baltoro.server.store import Store

    secret, key_id = forms.make()
    key = forms.Key(
        id=key_id,
        name=_checked_name(name),
        digest=forms.digest(secret),
        created_s=int(time.time()),
        expires_s=None if expires is None else _moment(expires),
        models=tuple(model) if model else None,
        limits=_limits(
            forms.Limits(), requests_per_minute, tokens_per_minute, concurrent, token_budget, token_budget_month,
            money_budget, money_budget_month,
        ),
    )  # fmt: skip
    store = Store(database)
    store.add(key)
    typer.echo(secret)
    typer.echo(f"the key of {name}: keep it, it is not shown again ({store.place})", err=True)


@keys.command("list")
def show(
    spent: Annotated[bool, typer.Option("--spent", help="With what each has used, in all and this month.")] = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Show all keys with their limits, the oldest first. Secrets are not kept, and so not shown."""
    from baltoro.server.store import Store

    store = Store(database)
    rows = [_described(key) | (_used(store, key) if spent else {}) for key in store.all_keys()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        facts = [f"{name} {value}" for name, value in row.items() if value is not None and name not in _SHOWN_FIRST]
        typer.echo("  ".join([f"{row['name']:20}", f"sk-baltoro-{row['id']}-...", row["state"], *facts]))
    if not rows:
        typer.echo("no keys: `baltoro keys create NAME`", err=True)


@keys.command("set")
def change(
    name: Name,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent: Concurrent = None,
    token_budget: TokenBudget = None,
    token_budget_month: TokenBudgetMonth = None,
    money_budget: MoneyBudget = None,
    money_budget_month: MoneyBudgetMonth = None,
    model: Models = None,
    expires: Expires = None,
    rename: Annotated[str | None, typer.Option(metavar="NAME", help="Its new name.")] = None,
    database: Database = None,
) -> None:
    """Change limits of a key; what is not named stays, and `none` takes a limit away.

    Running servers take it up within five seconds.
    """
    from baltoro.server.store import Store

    store = Store(database)
    key = _named(store, name)
    key = replace(
        key,
        limits=_limits(
            key.limits, requests_per_minute, tokens_per_minute, concurrent, token_budget, token_budget_month,
            money_budget, money_budget_month,
        ),
    )  # fmt: skip
    if rename is not None:
        key = replace(key, name=_checked_name(rename))
    if model is not None:
        key = replace(key, models=None if model == ["none"] else tuple(model))
    if expires is not None:
        key = replace(key, expires_s=None if expires == "none" else _moment(expires))
    store.change(key)
    typer.echo(json.dumps(_described(key)))


@keys.command("revoke")
def revoke(name: Name, database: Database = None) -> None:
    """Take a key back, for good. Running servers refuse it within five seconds; what it used stays in reports."""
    from baltoro.server.store import Store

    store = Store(database)
    key = _named(store, name)
    if key.revoked_s is None:
        store.change(replace(key, revoked_s=int(time.time())))
    typer.echo(f"{name} is revoked", err=True)


@app.command()
def usage(
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Of this key alone.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="First day (UTC), as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="Last day (UTC).")] = None,
    by: Annotated[list[By] | None, typer.Option(help="A row for each; repeatable. [default: key]")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a head, for spreadsheets.")] = False,
    as_json: AsJson = False,
    database: Database = None,
) -> None:
    """Say what keys have used: requests, tokens, money."""
    from baltoro.server.store import Store

    if as_csv and as_json:
        raise typer.BadParameter("CSV or JSON?", param_hint="--csv, --json")
    columns = list(dict.fromkeys(each.value for each in by or [By.key]))
    store = Store(database)
    if key is not None:
        _named(store, key)
    days = {name: None if day is None else _day(day).isoformat() for name, day in (("since", since), ("until", until))}
    rows = [_row(line, columns) for line in store.report(columns, key=key, **days)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    head = [*columns, "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost"]
    if as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        typer.echo(text.getvalue(), nl=False)
        return
    table = [head, *([f"{row[name]:,}" if isinstance(row[name], int) else row[name] for name in head] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [f"{cell:{'<' if at < len(columns) else '>'}{widths[at]}}" for at, cell in enumerate(line)]
        typer.echo("  ".join(cells).rstrip())


# ------------------------------------------------------------------------------------------ words <-> values

_SHOWN_FIRST = ("id", "name", "state")
_MONEY = ("money_budget", "money_budget_month")


def _limits(before: Limits, *given: str | None) -> Limits:
    """given: in the order of the fields; None stays as it was."""
    from baltoro.server.keys import LIMITS
    from baltoro.server.prices import money

    changed: dict[str, int | None] = {}
    for name, text in zip(LIMITS, given, strict=True):
        if text == "none":
            changed[name] = None
        elif text is not None and name in _MONEY:
            changed[name] = money(text)
        elif text is not None:
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                option = f"--{name.replace('_', '-')}"
                raise typer.BadParameter(f"'{text}' is no whole number, and not none", param_hint=option)
            changed[name] = int(text)
    return replace(before, **changed)


def _named(store: Store, name: str) -> Key:
    found = next((key for key in store.all_keys() if key.name == name), None)
    if found is None:
        raise AccountsError(f"there is no key named '{name}'", hint="`baltoro keys list` shows all")
    return found


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,100}", name) or name != name.strip():
        raise typer.BadParameter("expected 1 to 100 printable characters", param_hint="NAME")
    return name


def _moment(text: str) -> int:
    """Unix time of a duration from now, or of the beginning of a day."""
    if match := re.fullmatch(r"(\d{1,6})([hd])", text):
        return int(time.time()) + int(match[1]) * (3600 if match[2] == "h" else 86400)
    return int(datetime.combine(_day(text), datetime.min.time(), UTC).timestamp())


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is no day, as 2026-11-28") from error


def _described(key: Key) -> dict[str, Any]:
    from baltoro.server.prices import shown

    limits = {
        name: shown(value) if name in _MONEY and value is not None else value
        for name, value in asdict(key.limits).items()
    }
    created, expires = (
        None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="minutes")
        for moment in (key.created_s, key.expires_s)
    )
    models = None if key.models is None else ",".join(key.models)
    about = {"id": key.id, "name": key.name, "state": key.state(time.time()), "created": created, "expires": expires}
    return about | {"models": models} | limits


def _used(store: Store, key: Key) -> dict[str, Any]:
    from baltoro.server.prices import shown
    from baltoro.server.store import today

    spent = store.spent(key.id, today()[:7])
    return {
        "tokens": spent.tokens,
        "tokens_month": spent.tokens_month,
        "cost": shown(spent.cost),
        "cost_month": shown(spent.cost_month),
    }


def _row(line: Line, columns: list[str]) -> dict[str, Any]:
    from baltoro.server.prices import shown

    values = asdict(line) | {"cost": shown(line.cost)}
    return {name: value for name, value in values.items() if name in columns or name not in ("key", "day", "model")}
