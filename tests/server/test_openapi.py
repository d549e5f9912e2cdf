"""`GET /openapi.json` says of every route what it answers: schemathesis asks what the document allows, and what not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from tests.server.conftest import Address
from tests.server.script import Script

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'baltoro[test]'")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

# Fields contradict each other, a name may be a model that is not served: what fits the document may be refused.
EXAMPLES = 20  # a route and mode
REFUSABLE = [checks.positive_data_acceptance]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_documented_with_its_envelope(server: Address, script: Script, mode: Any) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in document.get_all_operations()]
    assert len(operations) == sum(map(len, server.http.get("/openapi.json").json()["paths"].values()))

    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            case.call_and_validate(excluded_checks=REFUSABLE, timeout=20)

        try:
            ask()
        except Unsatisfiable:
            assert mode == schemathesis.GenerationMode.NEGATIVE  # a route without parameters cannot be asked wrongly


def test_every_route_documents_its_refusals(server: Address) -> None:
    document = server.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            told = set(operation["responses"])
            assert {"200", "401", "500", "503"} <= told and "422" not in told, (method, path)
            assert method != "post" or {"400", "404", "408", "413", "429", "504"} <= told, (method, path)
