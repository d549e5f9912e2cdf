"""Bodies that almost fit meet the whole server, a model behind it: their dialect's envelope, never a fault of ours."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from baltoro.llm import LLM
from baltoro.server.app import Served, create_app
from tests.server import malformed
from tests.server.conftest import Address, serving

REQUESTS = 400  # bench/fuzz.py sends 10,000


@pytest.fixture(scope="module")
def running(tiny_checkpoint: Path) -> Iterator[tuple[malformed.Watched, Address]]:
    llm = LLM.open(tiny_checkpoint, max_context=512, threads=1)
    app = malformed.Watched(create_app(Served(llm=llm, names=("tiny",))))
    with serving(app) as address:
        yield app, address
    llm.close()


def test_valid_bodies_are_answered(running: tuple[malformed.Watched, Address]) -> None:
    """Or else nothing below would reach the model."""
    for path, body in malformed.VALID.items():
        response = running[1].http.post(path, json=body)
        assert response.status_code == 200, response.text


def test_malformed_requests_are_refused_in_their_dialect_and_leave_nothing_behind(
    running: tuple[malformed.Watched, Address],
) -> None:
    app, address = running
    address.http.post("/v1/messages/count_tokens", json=malformed.VALID["/v1/messages/count_tokens"])
    threads, tasks = threading.active_count(), app.settled(1)
    statuses: Counter[int | None] = Counter()
    for request in malformed.requests(REQUESTS, seed=1):
        answered = malformed.ask(address.port, request)
        statuses[answered and answered[0]] += 1
        if answered is not None:
            assert malformed.complaint(request, *answered) is None, (request, answered)
    assert app.settled(tasks) <= tasks
    assert threading.active_count() <= threads + 40  # of asyncio's pool, which is bounded
    assert {None, 200, 400} <= set(statuses) and statuses[400] > REQUESTS / 2, statuses
    assert address.http.get("/health").status_code == 200
    assert running[0].settled(tasks) <= tasks
