"""`GET /plan.json`: the calculator over HTTP, bounded, and the same as `baltoro plan --json`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.config import PRESETS, ModelConfig
from baltoro.errors import RequestError
from baltoro.plan import document
from baltoro.plan.machine import catalogue
from baltoro.server import planner
from tests.plan.made import plan
from tests.server.conftest import Address

KNOWN = catalogue()
CONFIGS = {name: ModelConfig.open(name) for name in PRESETS}


def test_the_answer_is_the_commands_own_document(server: Address) -> None:
    asked = {"machine": "h200-x16", "context": "32768", "concurrency": "4", "layout": "tp16"}
    answer = server.http.get("/plan.json", params=asked).json()
    expected = document.document(plan("h200-x16", layout="tp16", concurrency=4))
    assert {name: answer[name] for name in expected} == _as_json(expected)
    assert answer["choices"]["machines"]["m3-ultra"]


def _as_json(found: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(found))


def test_what_does_not_fit_is_an_answer_too(server: Address) -> None:
    answer = server.http.get("/plan.json", params={"ram": "8GiB"})
    assert answer.status_code == 200
    body = answer.json()
    assert not body["fits"]
    assert body["short_bytes"] > 0
    assert body["cache_bytes"]["131072"] == 9_210_691_584


@pytest.mark.parametrize(
    "query, word",
    [
        ("ram=much", "size"), ("disk=7GB", "bandwidth"), ("machine=nope", "catalogue"), ("model=/etc/passwd", "model"),
        ("model=../nano", "model"), ("context=0", "context"), ("context=1e9", "context"), ("context=²", "context"),
        ("nodes=99999", "nodes"), ("layout=tp0", "layout"), ("place=moon", "place"), ("format=fp4", "format"),
        ("gpu=9999xH200", "GPUs"), ("x=1", "unknown"), ("ram=1GiB&ram=2GiB", "twice"), ("price_hour=nan", "price_hour"),
        (f"gpu={'H' * 101}", "characters"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_400_and_names_its_field(server: Address, query: str, word: str) -> None:
    answer = server.http.get(f"/plan.json?{query}")
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]


VALUES = st.one_of(
    st.sampled_from(["1", "8", "131072", "64GiB", "7GB/s", "8xH200", "tp8+pp2", "dp16+ep", "gpu", "disk", "int4"]),
    st.sampled_from(sorted(KNOWN.machines)), st.sampled_from(sorted(PRESETS)), st.text(max_size=12),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(planner.FIELDS)), VALUES.filter(str.strip), max_size=6))
def test_whatever_is_asked_is_answered_or_refused(asked: dict[str, str]) -> None:
    try:
        found = planner.answer(asked, KNOWN, CONFIGS)
    except RequestError:
        return
    if found["fits"]:
        rates = found["tokens_per_s"]
        assert 0 < rates["low"] <= rates["expected"] <= rates["high"]
        assert found["capacity"]
    else:
        assert found["error"]
