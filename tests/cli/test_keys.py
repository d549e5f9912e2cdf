"""`baltoro keys`, `baltoro usage`, and who gets in at `baltoro serve`: as a shell sees them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import openai
import pytest

from baltoro.cli.access import Access
from baltoro.errors import BaltoroError
from baltoro.server import keys as forms
from baltoro.server.books import OneKey
from baltoro.server.store import Spending, Store
from tests.test_cli import BALTORO, error_of, run

PRICES = "[models.MODEL]\ninput = 2\ncached_input = 1\noutput = 4\n"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    monkeypatch.setenv("BALTORO_DATABASE", url)
    monkeypatch.delenv("BALTORO_API_KEY", raising=False)
    return url


def listed() -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(run("keys", "list", "--json").stdout)}


def created(name: str, *options: str) -> str:
    result = run("keys", "create", name, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_key_is_shown_once_and_then_only_what_it_may(tmp_path: Path) -> None:
    secret = created(
        "anna", "--requests-per-minute", "60", "--money-budget", "12.5", "--model", "k2", "--expires", "90d"
    )
    assert forms.id_of(secret)
    row = listed()["anna"]
    assert (row["id"], row["state"], row["models"]) == (secret[11:23], "active", "k2")
    assert (row["requests_per_minute"], row["tokens_per_minute"], row["money_budget"]) == (60, None, "12.50")
    ends = datetime.fromisoformat(row["expires"]) - datetime.now(UTC)
    assert timedelta(days=89) < ends < timedelta(days=91)
    for shown in (run("keys", "list"), run("keys", "list", "--spent", "--json"), run("keys", "set", "anna")):
        assert "anna" in shown.stdout
        assert secret[24:] not in shown.stdout + shown.stderr
    assert not any(secret[24:].encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_limits_change_one_by_one_and_go_with_none() -> None:
    created("anna", "--concurrent", "4", "--token-budget", "1000")
    run("keys", "set", "anna", "--concurrent", "8", "--model", "k2", "--expires", "2031-01-01")
    row = listed()["anna"]
    assert (row["concurrent"], row["token_budget"], row["models"]) == (8, 1000, "k2")
    assert row["expires"] == "2031-01-01T00:00+00:00"
    run("keys", "set", "anna", "--token-budget", "none", "--model", "none", "--expires", "none", "--rename", "berta")
    row = listed()["berta"]
    assert (row["concurrent"], row["token_budget"], row["models"], row["expires"]) == (8, None, None, None)


def test_a_key_that_is_revoked_stays_in_the_list_and_keeps_its_name() -> None:
    created("anna")
    assert run("keys", "revoke", "anna").returncode == 0
    assert listed()["anna"]["state"] == "revoked"
    assert "already" in error_of(run("keys", "create", "anna"))
    assert "no key named 'carla'" in error_of(run("keys", "revoke", "carla"))
    assert "no key named 'carla'" in error_of(run("keys", "set", "carla"))


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--concurrent", "-1"], 2, "no whole number"),
        (["--token-budget", "many"], 2, "--token-budget"),
        (["--token-budget", "9" * 19], 2, "no whole number"),
        (["--money-budget", "5 EUR"], 1, "no amount of money"),
        (["--expires", "soon"], 2, "no day"),
    ],
)
def test_what_makes_no_sense_is_refused_and_no_key_is_made(options: list[str], status: int, says: str) -> None:
    assert says in error_of(run("keys", "create", "anna", *options), status)
    assert listed() == {}


def test_usage_is_told_by_key_day_and_model_as_table_csv_and_json(database: str) -> None:
    secret = created("anna")
    store = Store(database)
    for day, model in (("2026-11-01", "k2"), ("2026-11-02", "k2"), ("2026-11-02", "nano")):
        store.spend(
            [Spending(key_id=secret[11:23], day=day, model=model, requests=1, prompt_tokens=1_000_000, cached_tokens=10,
                      completion_tokens=5, cost=1_500_000_000)]
        )  # fmt: skip
    store.close()
    by_key = json.loads(run("usage", "--json").stdout)
    assert by_key == [
        {"key": "anna", "requests": 3, "prompt_tokens": 3_000_000, "cached_tokens": 30, "completion_tokens": 15,
         "cost": "4.50"}
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(run("usage", "--by", "day", "--by", "model", "--csv").stdout)))
    assert [(row["day"], row["model"], row["cost"]) for row in rows] == [
        ("2026-11-01", "k2", "1.50"), ("2026-11-02", "k2", "1.50"), ("2026-11-02", "nano", "1.50"),
    ]  # fmt: skip
    assert "2,000,000" in run("usage", "--since", "2026-11-02", "--until", "2026-11-30", "--key", "anna").stdout
    assert "no key named 'carla'" in error_of(run("usage", "--key", "carla"))
    assert "no day" in error_of(run("usage", "--since", "yesterday"), 2)


@pytest.mark.parametrize("secret", [None, ""], ids=["no variable", "an empty one"])
def test_a_server_without_keys_stays_on_this_machine(secret: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if secret is not None:
        monkeypatch.setenv("BALTORO_API_KEY", secret)
    printed = error_of(run("serve", "--host", "0.0.0.0", "--port", "0"))
    for way in ("BALTORO_API_KEY", "--keys", "--insecure-no-keys"):
        assert way in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--price-input", "1"], "goes with --keys"),
        (["--keys", "--price-input", "1"], "both have a price"),
        (["--keys", "--prices", "x.toml", "--price-input", "1"], "already"),
        (["--keys", "--insecure-no-keys"], "keys, or no keys"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: list[str], says: str) -> None:
    assert says in error_of(run("serve", "--port", "0", *options), 2)


def test_a_price_list_that_is_not_there_and_two_kinds_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no-such.toml" in error_of(run("serve", "--port", "0", "--keys", "--prices", "no-such.toml"))
    monkeypatch.setenv("BALTORO_API_KEY", "swordfish")
    printed = error_of(run("serve", "--port", "0", "--keys"))
    assert "leave one of them out" in printed and "swordfish" not in printed


@contextmanager
def serving(model: Path, *options: str, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """`baltoro serve` as a user starts it; its URL, and afterwards the lines of its log."""
    command = [*BALTORO, "serve", str(model), "--port", "0", "--threads", "1", "--max-context", "512", *options]
    lines: list[str] = []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith("serving"):
            break
    else:
        raise AssertionError("".join(lines))
    url = line.split(" on ")[1].split()[0].removesuffix("/v1")
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/ready").status_code == 200
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        yield url, lines
    finally:
        process.send_signal(signal.SIGTERM)
        lines += process.communicate(timeout=60)[1].splitlines(keepends=True)
        assert process.returncode == 0, "".join(lines)


def test_a_server_with_keys_from_end_to_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    secret = created("anna", "--requests-per-minute", "3")
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES.replace("MODEL", json.dumps(tiny_checkpoint.resolve().name)))
    counts = [0, 0]
    with serving(tiny_checkpoint, "--keys", "--prices", str(prices)) as (url, lines):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
        for max_tokens in (3, 5):
            answer = client.chat.completions.create(
                model="baltoro", messages=[{"role": "user", "content": "Hi"}], max_tokens=max_tokens
            )
            assert answer.usage is not None
            counts[0] += answer.usage.prompt_tokens
            counts[1] += answer.usage.completion_tokens
        with client.completions.create(model="baltoro", prompt="Hi", max_tokens=400, stream=True) as stream:
            next(iter(stream))  # and away
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="baltoro", messages=[{"role": "user", "content": "Hi"}])
        assert httpx.get(f"{url}/metrics", headers={"x-api-key": secret}).text.count("baltoro:") > 100
        assert httpx.get(f"{url}/stats", headers={"x-api-key": secret[:-1]}).status_code == 401
        looked = run("doctor", "--url", url, "--seconds", "0.1")
        assert "401" in error_of(looked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BALTORO_API_KEY", secret)
            assert run("doctor", "--url", url, "--seconds", "0.1").returncode == 0
    (row,) = json.loads(run("usage", "--by", "key", "--by", "model", "--json").stdout)
    assert (row["key"], row["model"], row["requests"]) == ("anna", tiny_checkpoint.resolve().name, 3)
    assert row["prompt_tokens"] > counts[0]
    assert counts[1] < row["completion_tokens"] < counts[1] + 400
    assert float(row["cost"]) > 0
    log = "".join(lines)
    assert "429" in log and "Traceback" not in log
    assert secret[24:] not in log


def test_a_key_in_the_environment_opens_other_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Access(
        keys=False, database=None, prices=None, price_input=None, price_cached_input=None, price_output=None,
        insecure_no_keys=False,
    )  # fmt: skip
    plain.check(loopback=True)
    assert plain.accounts(("k2",), print) is None
    monkeypatch.setenv("BALTORO_API_KEY", "schwert\nfisch")
    with pytest.raises(BaltoroError, match="printable ASCII"):
        plain.check(loopback=False)
    monkeypatch.setenv("BALTORO_API_KEY", "swordfish\n")
    plain.check(loopback=False)
    accounts = plain.accounts(("k2",), print)
    assert isinstance(accounts, OneKey)
    assert asyncio.run(accounts.account("swordfish")).key.name == "BALTORO_API_KEY"


def test_listing_keys_needs_neither_torch_nor_a_web_server(database: str) -> None:
    created("anna")
    code = "import sys; from baltoro import cli; sys.argv[1:] = ['keys', 'list']\ntry: cli.main()\n"
    code += "finally: print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert "anna" in printed
    assert not {"torch", "fastapi", "uvicorn"} & set(printed.split())
