"""Retries, budget and ledger of an endpoint that fails in every way it can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baltoro.errors import AccessError, BaltoroError
from baltoro.eval.budget import Budget, BudgetSpent
from baltoro.eval.endpoint import Endpoint, connected
from baltoro.server import prices
from tests.eval.endpoints import Scripted, document, endpoint

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
PRICE = prices.price("kimi", {"input": "1", "output": "2"})


def test_what_passes_is_asked_again_later_and_later_until_it_is_answered(tmp_path: Path) -> None:
    busy = {"error": {"message": "slow down"}}
    troubles: list[Any] = [(503, {}), (0, httpx2.ReadError("gone")), (429, busy), (200, busy)]
    scripted = Scripted(lambda _: troubles.pop(0) if troubles else (200, document()))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    asking, ledger = endpoint(scripted, tmp_path)
    asking._sleep = sleep
    with ledger:
        reply = asyncio.run(asking.ask(BODY))
    assert reply.status == 200
    assert len(scripted.asked) == 5
    assert all(2**k <= wait <= 1.25 * 2**k for k, wait in enumerate(waits))
    assert len(waits) == 4


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_is_not_asked_again_within_a_run_nor_kept_for_the_next(tmp_path: Path, status: int) -> None:
    scripted = Scripted(lambda _: (status, {"error": {"message": "no"}}))
    for _ in range(2):
        asking, ledger = endpoint(scripted, tmp_path)
        with ledger:
            assert asyncio.run(asking.ask(BODY)).status == status
        assert asking.unanswered == 0
    assert len(scripted.asked) == 2


def test_a_wrong_key_ends_the_run(tmp_path: Path) -> None:
    asking, ledger = endpoint(Scripted(lambda _: (401, {"error": {"message": "who?"}})), tmp_path)
    with ledger, pytest.raises(AccessError, match="who"):
        asyncio.run(asking.ask(BODY))


def test_a_spent_quota_is_not_worth_waiting_for(tmp_path: Path) -> None:
    scripted = Scripted(lambda _: (429, {"error": {"code": "insufficient_quota"}}))
    asking, ledger = endpoint(scripted, tmp_path)
    with ledger:
        assert asyncio.run(asking.ask(BODY)).status == 429
    assert len(scripted.asked) == 1


def test_an_answer_is_paid_once_over_any_number_of_runs(tmp_path: Path) -> None:
    scripted = Scripted(lambda body: (200, document(str(body.get("seed")))))
    for run in range(3):
        asking, ledger = endpoint(scripted, tmp_path)
        with ledger:
            for seed in range(run + 2):
                reply = asyncio.run(asking.ask({**BODY, "seed": seed}))
                assert reply.body["choices"][0]["message"]["content"] == str(seed)
        assert asking.budget.used.completion_tokens == 5 * (run + 2), "what earlier runs spent counts"
    assert len(scripted.asked) == 4


def test_the_same_asked_twice_at_once_is_paid_once(tmp_path: Path) -> None:
    scripted = Scripted(lambda _: (200, document()))
    asking, ledger = endpoint(scripted, tmp_path)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(asking.ask(BODY) for _ in range(5)), asking.ask(BODY, salt="other"))

    with ledger:
        replies = asyncio.run(ask())
    assert len(scripted.asked) == asking.paid == 2
    assert all(reply.body == document() for reply in replies)


def test_a_stream_that_breaks_off_is_asked_again(tmp_path: Path) -> None:
    texts = ["data: {}\n\n", 'data: {"choices": []}\n\ndata: [DONE]\n\n']
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text=texts.pop(0)))
    asking, ledger = endpoint(Scripted(lambda _: (200, {})), tmp_path)
    asking._client = httpx2.AsyncClient(transport=transport, base_url="http://endpoint")
    with ledger:
        assert asyncio.run(asking.ask({**BODY, "stream": True})).events == [{"choices": []}]
    assert texts == []


def test_no_more_is_asked_than_the_budget_allows_however_many_ask_at_once(tmp_path: Path) -> None:
    scripted = Scripted(lambda _: (200, document(usage=(10, 20))))
    budget = Budget(most_tokens=100, price=PRICE)
    asking, ledger = endpoint(scripted, tmp_path, budget=budget, concurrency=1)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(asking.ask({**BODY, "seed": s}) for s in range(9)), return_exceptions=True)

    with ledger:
        results = asyncio.run(ask())
    assert len(scripted.asked) == 3, "the fourth could reach 110 tokens"
    assert sum(isinstance(each, BudgetSpent) for each in results) == 6
    assert budget.reserved == 0
    assert budget.cost == 3 * (10 * 1 + 20 * 2) * 1000


def test_money_is_a_budget_too_and_needs_a_price(tmp_path: Path) -> None:
    scripted = Scripted(lambda _: (200, document(usage=(100, 20))))
    budget = Budget(most_money=prices.money("0.0003"), price=PRICE)  # an answer costs 0.00014
    asking, ledger = endpoint(scripted, tmp_path, budget=budget, concurrency=1)
    with ledger, pytest.raises(BudgetSpent, match=r"of 0\.0003 has no room"):
        for seed in range(9):
            asyncio.run(asking.ask({**BODY, "seed": seed}))
    assert len(scripted.asked) == 2
    with pytest.raises(BaltoroError, match="nobody knows what tokens cost"):
        Budget(most_money=1)


def test_an_address_that_nobody_listens_at_is_told_with_the_address() -> None:
    async def enter() -> None:
        async with connected("http://127.0.0.1:9", key=None, model=None, timeout_s=5):
            raise AssertionError

    with pytest.raises(BaltoroError, match=r"http://127\.0\.0\.1:9 lists no models"):
        asyncio.run(enter())
    with pytest.raises(BaltoroError, match="is no address"):
        asyncio.run(_enter("127.0.0.1:8000"))


async def _enter(url: str) -> None:
    async with connected(url, key=None, model="m", timeout_s=5):
        pass


def test_an_endpoint_is_asked_by_so_many_at_once_and_no_more(tmp_path: Path) -> None:
    now: list[int] = [0, 0]

    async def handle(request: httpx2.Request) -> httpx2.Response:
        now[0] += 1
        now[1] = max(now)
        await asyncio.sleep(0)
        now[0] -= 1
        return httpx2.Response(200, json=document())

    asking: Endpoint
    asking, ledger = endpoint(Scripted(lambda _: (200, {})), tmp_path, concurrency=3)
    asking._client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://endpoint")

    async def ask() -> None:
        await asyncio.gather(*(asking.ask({**BODY, "seed": seed}) for seed in range(20)))

    with ledger:
        asyncio.run(ask())
    assert now[1] == 3
