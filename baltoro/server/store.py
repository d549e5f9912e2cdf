"""Keys and what they used, in a database: SQLite by default, PostgreSQL by URL.

Every method is one transaction. Spending is an addition in the database itself, so that several servers may share it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    case,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, SQLAlchemyError

from baltoro.chat.messages import Usage
from baltoro.errors import AccountsError
from baltoro.server.keys import LIMITS, Key, Limits, Spent

VERSION = 1  # of the tables
WAIT_S = 30.0  # that a writer waits for another one of the same SQLite file

_tables = MetaData()
_about = Table("baltoro_about", _tables, Column("version", Integer, primary_key=True, autoincrement=False))
_keys = Table(
    "baltoro_keys",
    _tables,
    Column("id", String(12), primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("created_s", BigInteger, nullable=False),
    Column("expires_s", BigInteger),
    Column("revoked_s", BigInteger),
    Column("models", JSON(none_as_null=True)),
    *(Column(name, BigInteger) for name in LIMITS),
)
_usage = Table(
    "baltoro_usage",
    _tables,
    Column("key_id", String(12), primary_key=True),
    Column("day", String(10), primary_key=True),  # UTC, as 2026-11-28
    Column("model", String(200), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in ("requests", "prompt_tokens", "cached_tokens")),
    *(Column(name, BigInteger, nullable=False) for name in ("completion_tokens", "cost")),
)
_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")


_SPENT = tuple(each.name for each in fields(Spent))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What requests of one key used of one model on one day."""

    key_id: str
    day: str  # UTC, as 2026-11-28
    model: str
    requests: int
    prompt_tokens: int  # cached ones included
    cached_tokens: int
    completion_tokens: int
    cost: int  # billionths of the prices' currency


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of a report; what the report is not divided by is None."""

    key: str | None
    day: str | None
    model: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int


class Store:
    """May be used by any thread; a thread that waits for the database holds up no other one."""

    def __init__(self, url: str | None = None) -> None:
        """url: as SQLAlchemy has it; None: a file in the user's data directory. Tables that are missing are made."""
        address = _address(url) if url else _file(default_path())
        self.place = address.render_as_string(hide_password=True)
        try:
            # hide_parameters: no digest, and no name of a customer, in the text of an error.
            self._engine = create_engine(address, hide_parameters=True, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            kind = address.get_backend_name()
            hint = "pip install 'baltoro[postgres]'" if kind == "postgresql" else "a driver for it is not installed"
            raise AccountsError(f"{self.place}: {error}", hint=hint) from error
        if address.get_backend_name() == "sqlite":
            _prepare_sqlite(self._engine)
        self._create()

    def close(self) -> None:
        self._engine.dispose()

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────

    def add(self, key: Key) -> None:
        with self._transaction() as connection:
            try:
                connection.execute(insert(_keys).values(digest=key.digest, **_columns(key)))
            except IntegrityError as error:
                raise AccountsError(
                    f"there is a key named '{key.name}' already", hint="`baltoro keys list` shows all, revoked ones too"
                ) from error

    def all_keys(self) -> list[Key]:
        """All of them, the oldest first."""
        with self._transaction() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.created_s, _keys.c.name)).all()
        return [_key(row) for row in rows]

    def find(self, key_id: str) -> Key | None:
        with self._transaction() as connection:
            row = connection.execute(select(_keys).where(_keys.c.id == key_id)).one_or_none()
        return None if row is None else _key(row)

    def change(self, key: Key) -> None:
        """Keep everything of `key` but its secret, which nothing changes."""
        values = _columns(key)
        with self._transaction() as connection:
            try:
                connection.execute(update(_keys).where(_keys.c.id == key.id).values(**values))
            except IntegrityError as error:
                raise AccountsError(f"there is a key named '{key.name}' already") from error

    # ── what they used ───────────────────────────────────────────────────────────────────────────

    def spend(self, spendings: Sequence[Spending]) -> None:
        """Add all of them or, where this raises, none."""
        with self._transaction() as connection:
            make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            for each in spendings:
                row = make(_usage).values(**asdict(each))
                added = {name: _usage.c[name] + row.excluded[name] for name in _SUMS}
                keys = [_usage.c.key_id, _usage.c.day, _usage.c.model]
                connection.execute(row.on_conflict_do_update(index_elements=keys, set_=added))

    def spent(self, key_id: str, month: str) -> Spent:
        """month: UTC, as 2026-11"""
        tokens = _usage.c.prompt_tokens + _usage.c.completion_tokens
        in_month = _usage.c.day.startswith(month, autoescape=True)
        sums = [tokens, case((in_month, tokens), else_=0), _usage.c.cost, case((in_month, _usage.c.cost), else_=0)]
        with self._transaction() as connection:
            row = connection.execute(
                select(*(func.coalesce(func.sum(each), 0) for each in sums)).where(_usage.c.key_id == key_id)
            ).one()
        return Spent(**dict(zip(_SPENT, map(int, row), strict=True)))

    def report(
        self, by: Sequence[str], *, key: str | None = None, since: str | None = None, until: str | None = None
    ) -> list[Line]:
        """Sums for each of `by` (key, day, model). `key` is a name; `since` and `until` are days, both included."""
        columns = {"key": _keys.c.name, "day": _usage.c.day, "model": _usage.c.model}
        wanted = [columns[each] for each in by]
        sums = [func.coalesce(func.sum(_usage.c[name]), 0) for name in _SUMS]
        query = select(*wanted, *sums).select_from(_usage.join(_keys, _keys.c.id == _usage.c.key_id))
        if key is not None:
            query = query.where(_keys.c.name == key)
        if since is not None:
            query = query.where(_usage.c.day >= since)
        if until is not None:
            query = query.where(_usage.c.day <= until)
        with self._transaction() as connection:
            rows = connection.execute(query.group_by(*wanted).order_by(*wanted)).all()
        lines: list[Line] = []
        for row in rows:
            named: dict[str, Any] = dict.fromkeys(columns) | dict(zip(by, row, strict=False))
            lines.append(Line(**named, **dict(zip(_SUMS, map(int, row[len(by) :]), strict=True))))
        return lines

    # ── the database ─────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _transaction(self) -> Generator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise AccountsError(f"{self.place}: {_reason(error)}", hint="is the database there, and may we?") from error

    def _create(self) -> None:
        try:
            version = self._tables()
        except DatabaseError:
            version = None  # two processes that make the tables at once: one fails, and finds that they are there now
        try:
            version = version or self._tables()
        except SQLAlchemyError as error:
            hint = "is it there, may we, and is the URL right?"
            raise AccountsError(f"{self.place}: {_reason(error)}", hint=hint) from error
        if version != VERSION:
            raise AccountsError(
                f"{self.place} has tables of version {version}, this program knows {VERSION}",
                hint="use the baltoro that made them, or another --database",
            )

    def _tables(self) -> int:
        """Make what is missing. -> the version of the tables"""
        with self._engine.begin() as connection:
            _tables.create_all(connection)
            version = connection.execute(select(_about.c.version)).scalar()
            if version is None:
                connection.execute(insert(_about).values(version=VERSION))
        return VERSION if version is None else version


def default_path() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "baltoro" / "baltoro.db"


def today() -> str:
    """The day of a spending."""
    return datetime.fromtimestamp(time.time(), UTC).date().isoformat()


def _file(path: Path) -> URL:
    """An SQLite file that only its owner may read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise AccountsError(f"{path}: {error.strerror}", hint="--database sqlite:////a/path/keys.db") from error
    return URL.create("sqlite", database=str(path))


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise AccountsError(  # without the text: it may hold a password
            "--database is no URL", hint="sqlite:////a/path/keys.db or postgresql://user:password@host/name"
        ) from error
    backend = address.drivername.partition("+")[0]
    if backend == "sqlite":
        if not address.database or address.database == ":memory:":
            raise AccountsError("--database names no file", hint="sqlite:////a/path/keys.db has four strokes")
        return _file(Path(address.database))
    if backend in ("postgresql", "postgres"):
        return address.set(drivername="postgresql+psycopg")
    raise AccountsError(f"--database is of kind '{backend}'", hint="expected sqlite or postgresql")


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def pragmas(connection: Any, _: object) -> None:  # pyright: ignore[reportUnusedFunction]
        try:
            connection.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")
            connection.execute("PRAGMA journal_mode = WAL")  # `baltoro keys` reads and writes while a server runs
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut takes the last usage, never the file
        except Exception:  # a file that is no database; nobody else closes what never came into the pool
            connection.close()
            raise


def _reason(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:300]


def _columns(key: Key) -> dict[str, Any]:
    facts = {name: getattr(key, name) for name in ("id", "name", "created_s", "expires_s", "revoked_s")}
    models = None if key.models is None else list(key.models)
    return facts | {"models": models} | asdict(key.limits)


def _key(row: Row[Any]) -> Key:
    values: dict[str, Any] = dict(zip(_keys.c.keys(), row, strict=True))
    limits = Limits(**{name: values.pop(name) for name in LIMITS})
    models = values.pop("models")
    return Key(**values, models=None if models is None else tuple(models), limits=limits)


def spending(key_id: str, model: str, usage: Usage, cost: int) -> Spending:
    """One request of today."""
    return Spending(
        key_id=key_id,
        day=today(),
        model=model[:200],
        requests=1,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cost=cost,
    )
