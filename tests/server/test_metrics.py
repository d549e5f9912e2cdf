"""GET /metrics as Prometheus' own parser reads it, and the dashboard over it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from baltoro.engine import observe
from baltoro.engine.observe import Observer, StepRecord
from baltoro.engine.remote import RemoteStatistics
from baltoro.engine.statistics import Statistics
from baltoro.errors import QueueFull
from baltoro.server import metrics
from baltoro.server.app import Served, create_app
from baltoro.weights import experts
from tests.server.conftest import Address, serving
from tests.server.script import Script

CHAT = "/v1/chat/completions"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
STEP = StepRecord(
    began_s=0.0, schedule_s=0.5, pack_s=0.25, forward_s=2.0, sample_s=0.125, sequences=1, tokens=40, logits=1,
    waiting=0, free_pages=0,
)  # fmt: skip


def statistics() -> dict[str, Any]:
    """As GET /stats has them: every counter of the engine at another value, its observer after two steps."""
    engine = {each.name: 1000 + place for place, each in enumerate(fields(Statistics))}
    observer = Observer()
    observer.step(STEP)
    observer.step(STEP)
    store = asdict(experts.Statistics(hits=3, misses=1, bytes_read=2**40, waited_s=0.5))
    return {"engine": engine | {"free_pages": 300, "num_pages": 400} | observer.read(), "store": store}


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def read(page: str, name: str, **labels: str) -> float:
    """The one sample of this name with these labels among its own."""
    found = [
        value
        for (each, has), value in samples(page).items()
        if each == f"baltoro:{name}" and labels.items() <= set(has)
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def text(found: dict[str, Any], **options: Any) -> str:
    return metrics.text(found, metrics.HttpCounts(), **{"model": "k2", "healthy": True} | options)


def test_every_number_of_the_engine_is_there_under_its_name() -> None:
    found = statistics()
    page = text(found)
    for field, meaning in metrics.ENGINE.items():
        if field in found["engine"]:
            assert read(page, meaning.name, model_name="k2") == found["engine"][field], field
    for field, meaning in metrics.STORE.items():
        assert read(page, meaning.name) == found["store"][field]
    assert read(page, "kv_cache_usage_perc") == 0.25
    assert read(page, "engine_phase_seconds_total", phase="forward") == 4.0
    assert read(page, "iteration_tokens_total_sum") == 80.0
    assert read(page, "iteration_tokens_total_count") == read(page, "iteration_tokens_total_bucket", le="64.0") == 2.0
    assert read(page, "iteration_tokens_total_bucket", le="32.0") == 0.0
    assert read(page, "iteration_tokens_total_bucket", le="+Inf") == 2.0
    assert read(page, "healthy") == 1
    assert read(text(found, healthy=False), "healthy") == 0


def test_the_tables_name_what_engines_count() -> None:
    known = {each.name for each in fields(Statistics)} | {each.name for each in fields(RemoteStatistics)}
    assert metrics.ENGINE.keys() <= known
    assert metrics.STORE.keys() <= {each.name for each in fields(experts.Statistics)}
    assert metrics.HISTOGRAMS.keys() == observe.HISTOGRAMS.keys()


def test_types_are_told_and_counters_end_as_prometheus_wants() -> None:
    families = list(text_string_to_metric_families(text(statistics())))
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    assert all(family.documentation.endswith(".") for family in families)
    assert len({family.name for family in families}) == len(families)


def test_upstreams_and_a_script_have_fewer_numbers_and_no_wrong_ones() -> None:
    remote = RemoteStatistics(running=1, generated_tokens=2, corrections=3, retries=4, upstreams=())
    page = text({"engine": asdict(remote), "store": None})
    assert read(page, "upstream_retries_total") == 4
    of_http = {"baltoro:healthy", "baltoro:http_requests_running"}
    of_upstreams = {
        "num_requests_running", "generation_tokens_total", "upstream_corrections_total", "upstream_retries_total",
    }  # fmt: skip
    assert {name for name, _ in samples(page)} == of_http | {f"baltoro:{name}" for name in of_upstreams}
    assert {name for name, _ in samples(text({"engine": None, "store": None}))} == of_http


def test_a_name_with_quotes_and_line_breaks_stays_one_label() -> None:
    name = 'a "model"\\n\n of mine'
    assert read(text(statistics(), model=name), "num_requests_running", model_name=name) == 1000


@pytest.fixture
def counted() -> Iterator[tuple[Script, Address]]:
    script = Script()
    script.statistics = lambda: {"max_context": 1, **statistics()}  # type: ignore[method-assign]
    with serving(create_app(Served(llm=script, names=("tiny",)))) as address:  # type: ignore[arg-type]
        yield script, address


def test_answers_are_counted_by_route_and_status_whatever_clients_invent(counted: tuple[Script, Address]) -> None:
    script, address = counted
    address.http.post(CHAT, json=GOOD)
    address.http.post(CHAT, json=GOOD)
    address.http.post(CHAT, json={**GOOD, "model": "x"})
    script.refusal = QueueFull("full", retry_after_s=1)
    address.http.post(CHAT, json=GOOD)
    for path in ("/nope", "/v1/models/a", "/v1/models/b/c", "/%22%0A", CHAT + "/x"):
        address.http.get(path)
    address.http.request("BREW", "/health")
    response = address.http.get("/metrics")
    assert response.headers["content-type"] == metrics.CONTENT_TYPE
    page = response.text
    for method, route, status, count in (
        ("POST", CHAT, "200", 2),
        ("POST", CHAT, "404", 1),
        ("POST", CHAT, "429", 1),
        ("GET", "other", "404", 3),
        ("GET", "/v1/models/{name:path}", "404", 2),
        ("other", "/health", "405", 1),
    ):
        assert read(page, "http_requests_total", method=method, route=route, status=status) == count
    assert read(page, "refused_requests_total", reason="queue") == 1
    assert read(page, "http_requests_running") == 1  # this one


def test_every_metric_of_the_dashboard_exists(counted: tuple[Script, Address]) -> None:
    script, address = counted
    script.refusal = QueueFull("full", retry_after_s=1)
    address.http.post(CHAT, json=GOOD)
    remote = RemoteStatistics(running=1, generated_tokens=2, corrections=3, retries=4, upstreams=())
    there = {name for name, _ in samples(address.http.get("/metrics").text)}
    there |= {name for name, _ in samples(text({"engine": asdict(remote), "store": None}))}
    shown = set(re.findall(r"baltoro:\w+", DASHBOARD.read_text()))
    assert len(shown) > 15
    assert shown <= there


def test_the_dashboard_asks_for_labels_that_there_are(counted: tuple[Script, Address]) -> None:
    _, address = counted
    address.http.post(CHAT, json=GOOD)
    labels = {label for _, has in samples(address.http.get("/metrics").text) for label, _ in has} | {"reason"}
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            for names in re.findall(r"by \(([^)]*)\)", target["expr"]):
                assert set(names.split(", ")) <= labels
            assert set(re.findall(r"{(\w+)=~", target["expr"])) <= labels


def test_ready_is_not_healthy(counted: tuple[Script, Address]) -> None:
    script, address = counted
    assert address.http.get("/ready").status_code == 200
    script.fault = "no step has ended"
    assert address.http.get("/ready").status_code == address.http.get("/health").status_code == 503


def test_ready_says_no_before_the_server_leaves() -> None:
    served = Served(llm=Script(), names=("tiny",))  # type: ignore[arg-type]
    with serving(create_app(served)) as address:
        assert address.http.head("/ready").status_code == 200
        served.draining.set()
        assert address.http.get("/ready").status_code == 503
        assert address.http.get("/health").status_code == 200
        assert address.http.post(CHAT, json=GOOD).status_code == 200
