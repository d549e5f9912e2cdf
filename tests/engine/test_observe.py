"""Histograms against numpy's, and what the engine notes against what its requests heard."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baltoro.engine.engine import Engine
from baltoro.engine.observe import HISTOGRAMS, Histogram
from baltoro.engine.statistics import Statistics
from tests.engine.fake import HashModel, engine_config, request
from tests.engine.test_engine import settle


@given(st.lists(st.floats(0, 1e4) | st.sampled_from([0.001, 1.0, 2.5])), st.sampled_from(list(HISTOGRAMS.values())))
def test_buckets_are_counts_of_what_is_not_above_them(values, bounds):
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    told = histogram.read()
    assert told["count"] == len(values)
    assert math.isclose(told["sum"], math.fsum(values), rel_tol=1e-9, abs_tol=1e-9)
    assert told["buckets"] == {
        **{repr(bound): int(np.sum(np.array(values) <= bound)) for bound in bounds}, "+Inf": len(values)
    }  # fmt: skip


def test_every_request_and_step_is_counted_once():
    with Engine(HashModel(), engine_config(400)) as engine:
        pairs = [request([1, number], max_tokens=tokens) for number, tokens in enumerate([1, 5, 9])]
        for req, _ in pairs:
            engine.submit(req)
        for _, heard in pairs:
            heard.wait()
        settle(engine, running=0, waiting=0)
    told, statistics = engine.observed(), engine.statistics()
    json.dumps(told)
    counts = {name: each["count"] for name, each in told["histograms"].items()}
    assert counts == {
        "request_queue_time_seconds": 3,
        "time_to_first_token_seconds": 3,
        "request_time_per_output_token_seconds": 2,  # one token has no time between
        "e2e_request_latency_seconds": 3,
        "iteration_tokens_total": statistics.steps,
    }
    assert told["finished"] == {"stop": 0, "length": 3, "cancelled": 0, "error": 0}
    assert told["histograms"]["iteration_tokens_total"]["sum"] == (
        statistics.prefilled_tokens + statistics.generated_tokens - 3 + statistics.drafted_tokens
        - statistics.foreseen_tokens
    )  # fmt: skip
    phases = told["phase_seconds"]
    latest = told["last_step"]
    assert all(seconds > 0 for seconds in phases.values())
    assert all(latest[f"{phase}_s"] <= phases[phase] for phase in phases)
    queued, first, whole = (
        told["histograms"][name]["sum"]
        for name in ("request_queue_time_seconds", "time_to_first_token_seconds", "e2e_request_latency_seconds")
    )
    assert 0 <= queued <= first <= whole
    assert not set(Statistics.__slots__) & set(told), "one would hide the other in /stats"


def test_a_request_has_its_marks_before_it_hears_of_them():
    seen = []
    with Engine(HashModel(), engine_config(400)) as engine:
        req, heard = request([1, 2], max_tokens=3)
        sink = req.sink

        def see(step):
            seen.append((req.marks.began_s, req.marks.first_s))
            sink(step)

        req.sink = see
        engine.submit(req)
        heard.wait()
        settle(engine, running=0, waiting=0)
    sums = {name: each["sum"] for name, each in engine.observed()["histograms"].items()}
    assert len(seen) == 3 and set(seen) == {(req.marks.began_s, req.marks.first_s)}
    arrived, began, first = req.marks.arrived_s, *seen[0]
    assert began is not None and first is not None and arrived <= began <= first
    # The histograms count from submit, the marks from the making of the request, a moment before.
    assert began - arrived >= sums["request_queue_time_seconds"]
    assert math.isclose(
        first - began, sums["time_to_first_token_seconds"] - sums["request_queue_time_seconds"], abs_tol=1e-6
    )
