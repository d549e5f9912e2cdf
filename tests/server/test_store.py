"""Keys and usage in SQLite and PostgreSQL: the same answers from both."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from baltoro.errors import AccountsError
from baltoro.server import keys
from baltoro.server.keys import Key, Limits, Spent
from baltoro.server.store import Spending, Store
from tests.server.databases import PASSWORD, postgres


@pytest.fixture(scope="module")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'keys.db'}"
    address: str = request.getfixturevalue("_postgres")
    engine = create_engine(address.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS baltoro_about, baltoro_keys, baltoro_usage"))
    engine.dispose()
    return address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def key(name: str, **changes: object) -> Key:
    secret, key_id = keys.make()
    made = Key(id=key_id, name=name, digest=keys.digest(secret), created_s=1_800_000_000)
    return replace(made, **changes)  # type: ignore[arg-type]


def spent(key_id: str, day: str, model: str = "k2", cost: int = 5) -> Spending:
    return Spending(
        key_id=key_id, day=day, model=model, requests=1, prompt_tokens=100, cached_tokens=30, completion_tokens=7,
        cost=cost,
    )  # fmt: skip


def test_a_key_is_read_as_it_was_written(store: Store) -> None:
    full = Limits(
        requests_per_minute=1, tokens_per_minute=2, concurrent=3, token_budget=2**62, token_budget_month=0,
        money_budget=6, money_budget_month=7,
    )  # fmt: skip
    plain, rich = key("plain"), key("Ж 'quoted'", expires_s=5, revoked_s=6, models=("a", "b"), limits=full)
    store.add(rich)
    store.add(replace(plain, created_s=1))
    assert store.all_keys() == [replace(plain, created_s=1), rich]
    assert store.find(rich.id) == rich
    assert store.find("nobody") is None
    store.change(replace(rich, models=None, limits=Limits()))
    assert store.find(rich.id) == replace(rich, models=None, limits=Limits())


def test_two_keys_cannot_have_one_name(store: Store) -> None:
    first, second = key("anna"), key("berta")
    store.add(first)
    store.add(second)
    with pytest.raises(AccountsError, match="named 'anna' already"):
        store.add(key("anna"))
    with pytest.raises(AccountsError, match="named 'anna' already"):
        store.change(replace(second, name="anna"))
    assert {each.name for each in store.all_keys()} == {"anna", "berta"}


def test_spending_adds_up_by_month_and_in_all(store: Store) -> None:
    anna = key("anna")
    store.add(anna)
    assert store.spent(anna.id, "2026-11") == Spent()
    store.spend([spent(anna.id, "2026-10-31"), spent(anna.id, "2026-11-01"), spent(anna.id, "2026-11-01", "nano")])
    store.spend([spent(anna.id, "2026-11-30", cost=10**17)])
    store.spend([spent("another", "2026-11-30")])
    cost = 10**17 + 15
    assert store.spent(anna.id, "2026-11") == Spent(tokens=428, tokens_month=321, cost=cost, cost_month=cost - 5)


def test_a_report_sums_what_it_is_not_divided_by(store: Store) -> None:
    anna, berta = key("anna"), key("berta")
    for each in (berta, anna):
        store.add(each)
    days = ("2026-11-01", "2026-11-02", "2026-11-02", "2026-11-03")
    store.spend([spent(each.id, day, model) for each in (anna, berta) for day in days for model in ("k2", "nano")])
    by_key = store.report(["key"])
    assert [(line.key, line.day, line.model, line.requests, line.cost) for line in by_key] == [
        ("anna", None, None, 8, 40),
        ("berta", None, None, 8, 40),
    ]
    lines = store.report(["day", "model"], key="anna", since="2026-11-02", until="2026-11-02")
    assert [(line.day, line.model, line.requests, line.prompt_tokens) for line in lines] == [
        ("2026-11-02", "k2", 2, 200),
        ("2026-11-02", "nano", 2, 200),
    ]
    assert store.report(["key", "day", "model"], since="2027-01-01") == []


def test_servers_that_share_a_database_lose_nothing(url: str, store: Store) -> None:
    """Each thread is a server of its own, with its own connections; all begin by making the tables."""
    anna = key("anna")
    store.add(anna)
    failures: list[Exception] = []

    def serve() -> None:
        mine = Store(url)
        try:
            for _ in range(25):
                mine.spend([spent(anna.id, "2026-11-28")])
        except Exception as error:
            failures.append(error)
        finally:
            mine.close()

    servers = [threading.Thread(target=serve) for _ in range(4)]
    for each in servers:
        each.start()
    for each in servers:
        each.join()
    assert not failures
    assert store.spent(anna.id, "2026-11").tokens == 4 * 25 * 107


def test_a_spending_that_fails_adds_nothing_of_its_batch(store: Store) -> None:
    bad = replace(spent("a", "2026-11-28"), requests=2**63)  # more than the column holds
    with pytest.raises((AccountsError, OverflowError)):
        store.spend([spent("a", "2026-11-28"), bad])
    assert store.spent("a", "2026-11") == Spent()


def test_tables_of_another_version_are_refused(url: str, store: Store) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE baltoro_about SET version = 99"))
    engine.dispose()
    with pytest.raises(AccountsError, match="version 99, this program knows 1"):
        Store(url)


def test_an_sqlite_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "keys.db"
    Store(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_url_means_the_user_s_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Store().close()
    assert (tmp_path / "baltoro" / "baltoro.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"not a url {PASSWORD}", "no URL"),
        (f"mysql://u:{PASSWORD}@h/db", "expected sqlite or postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:////proc/nowhere/keys.db", "No such file"),
        (f"postgresql://u:{PASSWORD}@/db?host=/nowhere", "/nowhere"),
    ],
)
def test_a_database_that_cannot_be_used_is_explained_without_its_password(url: str, says: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(AccountsError) as refused:
        Store(url)
    assert says in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_a_wrong_password_is_not_repeated(_postgres: str) -> None:
    with pytest.raises(AccountsError) as refused:
        Store(_postgres.replace(PASSWORD, "guessed-wrongly"))
    assert "password" in str(refused.value)
    assert "guessed-wrongly" not in str(refused.value)


def test_a_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("these are not the bytes of a database" * 100)
    with pytest.raises(AccountsError, match="not a database"):
        Store(f"sqlite:///{tmp_path / 'keys.db'}")
