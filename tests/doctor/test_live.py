"""Two looks at a server's counters, and what follows from them."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from baltoro.doctor import live
from baltoro.errors import BaltoroError


def look(clock_s: float, store: dict[str, Any] | None = None, **engine: int) -> dict[str, Any]:
    counters = dict.fromkeys(
        ("running", "waiting", "free_pages", "generated_tokens", "prefilled_tokens", "steps", "preemptions",
         "failed_steps"), 0,
    )  # fmt: skip
    whole = {"slots": 5, "budget_bytes": 10**9, "hits": 0, "misses": 0, "bytes_read": 0, "waited_s": 0.0}
    return {
        "model": "m", "clock_s": clock_s, "engine": {**counters, "num_pages": 100, **engine},
        "store": None if store is None else {**whole, **store},
    }  # fmt: skip


def test_counters_become_rates() -> None:
    first = look(10.0, {"hits": 5, "misses": 5}, steps=3, generated_tokens=7, prefilled_tokens=1)
    second = look(
        14.0, {"hits": 65, "misses": 25, "bytes_read": 8 * 10**9, "waited_s": 3.0}, steps=13, generated_tokens=27,
        prefilled_tokens=21, running=2,
    )  # fmt: skip
    found = live.between("url", first, second)
    assert (found.tokens_per_s, found.prompt_tokens_per_s, found.steps_per_s, found.tokens_per_step) == (5, 5, 2.5, 2)
    store = found.store
    assert store is not None
    assert (store.hit_rate, store.read_gbps, store.bytes_per_token, store.waited_share) == (0.75, 2, 2e8, 0.75)
    assert "the disk binds: 75%" in "\n".join(live.lines(found))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (look(5.0), "it was idle"),
        (look(5.0, running=1), "no step ended in 5.0 s: look for longer, --seconds 20"),
        (look(5.0, steps=9, running=1), "no request waited"),
        (look(5.0, {"waited_s": 0.5}, steps=9, running=1), "does not bind: 10%"),
        (look(5.0, steps=9, running=4, waiting=3, free_pages=90), "3 requests wait behind 4: more --max-running"),
        (look(5.0, steps=9, running=4, waiting=3, free_pages=10), "10% of the cache is free"),
        (look(5.0, steps=9, running=4, preemptions=2), "2 requests lost their cache pages"),
        (look(5.0, steps=9, running=4, failed_steps=1), "1 steps failed"),
    ],
)
def test_what_is_said_follows_from_a_number(second: dict[str, Any], says: str) -> None:
    first = look(0.0, None if second["store"] is None else {})
    assert says in "\n".join(live.meaning(live.between("url", first, second)))


class Strange(BaseHTTPRequestHandler):
    """A server of another make: it has /stats, and says little there."""

    def do_GET(self) -> None:
        known = {"/stats": b'{"model": "m", "clock_s": 1, "engine": {"steps": 0}, "store": null}', "/a/stats": b"[]"}
        body = known.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to stderr."""


def test_a_server_that_is_none_of_ours_is_explained() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            document = live.fetch(url + "/v1/")
            with pytest.raises(BaltoroError, match="of another version"):
                live.between(url, document, {**document, "clock_s": 2})
            with pytest.raises(BaltoroError, match="answers 404"):
                live.fetch(url + "/b")
            with pytest.raises(BaltoroError, match="says nothing of an engine"):
                live.fetch(url + "/a")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(BaltoroError, match="does not answer"):
        live.fetch("http://127.0.0.1:1")
    with pytest.raises(BaltoroError, match="is no address"):
        live.fetch("localhost:8000")


def test_a_server_that_was_started_anew_is_told() -> None:
    with pytest.raises(BaltoroError, match="started anew"):
        live.between("url", look(9.0, steps=5), look(10.0, steps=1))


def test_a_server_that_stands_before_others_is_told() -> None:
    second = look(10.0)
    second["engine"] = {"generated_tokens": 3, "upstreams": [{"url": "http://a:1"}, {"url": "http://b:2"}]}
    with pytest.raises(BaltoroError, match=r"(?s)computes nothing itself.*http://a:1, http://b:2"):
        live.between("url", look(9.0), second)
